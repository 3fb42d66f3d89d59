"""The whole way with a tiny policy, through the code a person runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from safetensors.torch import save_file

from grpo_math.__main__ import dispatch
from grpo_math.check import check
from grpo_math.data import DatasetSpec, load_problems
from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe
from grpo_math.rewards.library import heuristic
from grpo_math.runs.checkpoints import find_checkpoint
from grpo_math.runs.folder import read_table
from grpo_math.train import train


def run(recipe_path, *arguments: str) -> dict:
    return train(load_recipe(["--config", str(recipe_path), *arguments]))


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def steps_of(folder) -> list[dict]:
    """metrics.jsonl without the evaluations."""
    return [row for row in rows(folder / "metrics.jsonl") if "eval/accuracy" not in row]


def test_a_run_leaves_everything_in_its_folder(write_recipe, tmp_path):
    results = run(write_recipe(eval={"before_after": True, "batch_size": 3}, save_steps=1))
    folder = tmp_path / "run"
    assert results == json.loads((folder / "results.json").read_text())
    assert results["steps"] == 2
    assert results["before"]["problems"] == results["after"]["problems"] == 8
    assert results["seconds"].keys() == {"train", "evaluate", "total"}
    metrics = steps_of(folder)
    assert [row["step"] for row in metrics] == [1, 2]
    wanted = {"reward", "accuracy", "rewards/correctness/mean", "rewards/format/mean", "completions/mean_length"}
    assert wanted <= metrics[0].keys()
    assert [row["step"] for row in rows(folder / "eval.jsonl")] == [0, 2]
    completions = read_table(folder / "completions" / "eval-000002.parquet")
    assert len(completions) == 8
    assert {"question", "gold", "completion", "answer", "correct", "how", "well_formed", "length"} <= completions[
        0
    ].keys()
    assert [row["gold"] for row in completions] == [
        row["gold"] for row in read_table(folder / "completions" / "eval-000000.parquet")
    ]
    facts = json.loads((folder / "environment.json").read_text())
    assert len(facts["dataset_fingerprint"]) == 16
    assert facts["packages"]["trl"]
    assert "training on gsm8k train: 16 problems of 16 rows" in (folder / "training.log").read_text()
    assert (folder / "final" / "model.safetensors").exists()
    assert load_recipe(["--config", str(folder / "recipe.yaml")]).trainer["max_steps"] == 2


def test_a_folder_with_a_run_is_not_overwritten(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=1)
    run(recipe)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="already holds a run: continue it with --resume_from_checkpoint auto"):
        run(recipe)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_resume_continues_where_the_last_complete_checkpoint_was(write_recipe, tmp_path):
    import torch
    from safetensors.torch import load_file

    eval_ = {"before_after": True}
    whole = write_recipe("whole.yaml", output_dir=str(tmp_path / "whole"), max_steps=4, save_steps=2, eval=eval_)
    run(whole)
    halves = write_recipe("halves.yaml", output_dir=str(tmp_path / "halves"), max_steps=3, save_steps=2, eval=eval_)
    run(halves)
    (tmp_path / "halves" / "checkpoint-3").rename(tmp_path / "halves" / "checkpoint-9")
    (tmp_path / "halves" / "checkpoint-9" / "trainer_state.json").unlink()  # half-written: not chosen
    with (tmp_path / "halves" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # killed in the middle of a line
    results = run(halves, "--max_steps", "4", "--resume_from_checkpoint", "auto")
    assert [row["step"] for row in rows(tmp_path / "halves" / "metrics.jsonl")] == [0, 1, 2, 3, 4, 4]
    evaluations = rows(tmp_path / "halves" / "eval.jsonl")
    assert results["before"] == evaluations[0]
    assert results["seconds"]["evaluate"] == pytest.approx(
        evaluations[-1]["seconds"], abs=1
    )  # the first was made before the resume
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_killed_behind_its_last_evaluation_keeps_one_of_them(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=2, save_steps=1, eval={"before_after": True})
    run(recipe)
    shutil.rmtree(tmp_path / "run" / "final")
    (tmp_path / "run" / "results.json").unlink()
    run(recipe, "--resume_from_checkpoint", "auto")
    assert [row["step"] for row in rows(tmp_path / "run" / "eval.jsonl")] == [0, 2]
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 2]


def test_the_step_of_a_checkpoint_is_logged_at_the_end_of_an_epoch_too(write_recipe, tmp_path):
    run(write_recipe(max_steps=9, logging_steps=3, save_strategy="epoch"))
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [3, 6, 8, 9]


def test_a_finished_run_is_neither_trained_on_nor_replaced(write_recipe, tmp_path, capsys):
    recipe = write_recipe(save_steps=1)
    results = run(recipe)
    assert run(recipe, "--resume_from_checkpoint", "auto") == results
    assert "already finished, 2 steps" in capsys.readouterr().out
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [1, 2]
    (tmp_path / "run" / "results.json").unlink()
    again = run(recipe, "--resume_from_checkpoint", "auto")  # as if killed before it was written
    assert again.keys() == results.keys()
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match=r"max_steps: .*checkpoint-2 is already at step 2: raise it"):
        run(recipe, "--resume_from_checkpoint", "auto", "--max_steps", "1")
    for step in (1, 2):
        (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    with pytest.raises(UserError, match="holds a finished run without a checkpoint"):
        run(recipe, "--resume_from_checkpoint", "auto")


def test_a_run_finished_by_its_epochs_is_not_trained_on_either_until_there_are_more(write_recipe, capsys):
    recipe = write_recipe(max_steps=None, num_train_epochs=1, save_steps=4)
    results = run(recipe)
    assert results["steps"] == 8
    assert run(recipe, "--resume_from_checkpoint", "auto") == results
    assert "already finished, 8 steps" in capsys.readouterr().out
    assert run(recipe, "--resume_from_checkpoint", "auto", "--num_train_epochs", "1.5")["steps"] == 12


def test_resume_wants_the_same_problems(write_recipe):
    recipe = write_recipe(save_steps=1, max_steps=1)
    run(recipe)
    arguments = ["--max_steps", "2", "--resume_from_checkpoint", "auto", "--dataset.max_samples", "4"]
    with pytest.raises(UserError, match="the run was started with other problems"):
        run(recipe, *arguments)


def test_a_run_that_failed_before_its_first_step_does_not_block_the_next(write_recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [None]\n")
    with pytest.raises(UserError):
        run(write_recipe(rewards={"mine": {"path": f"{tmp_path}/mine.py:f"}}))
    assert run(write_recipe(max_steps=1))["steps"] == 1


def test_a_resume_under_other_settings_says_so_and_refuses_what_the_optimizer_would_not_take(
    write_recipe, tmp_path, capsys
):
    recipe = write_recipe(max_steps=1, save_steps=1)
    run(recipe)
    again = ("--resume_from_checkpoint", "auto", "--max_steps", "2")
    said = (
        r"learning_rate: the checkpoint was saved with .* and cannot resume with 0.5: restore it, or "
        r"start a new run with --model_name_or_path .*/checkpoint-1 and another --output_dir"
    )
    with pytest.raises(UserError, match=said):
        run(recipe, *again, "--learning_rate", "0.5")
    run(recipe, *again, "--rewards.format.weight", "0.75")
    told = "checkpoint-1 with other settings: max_steps 2 (it was 1), rewards.format.weight 0.75 (it was "
    assert told in (tmp_path / "run" / "training.log").read_text()
    assert told in capsys.readouterr().out


def saved(folder: Path, recipe: dict, *others: str) -> Path:
    """A checkpoint of a run with this recipe, as far as it is read before a model is loaded."""
    import torch

    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / "checkpoint-1" / name)
    save_file({}, folder / "checkpoint-1" / "model.safetensors")
    (folder / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    for name in others:
        (folder / "checkpoint-1" / name).write_text("{}")
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    ("before", "now", "others", "message"),
    [
        ({"lora_r": 4}, {"lora_r": 8}, [], "lora_r: the checkpoint was saved with 4 and cannot resume with 8"),
        ({"use_peft": True}, {}, [], "use_peft: the checkpoint was saved with True and cannot resume with its default"),
        ({"optim_args": "eps=1"}, {}, [], "optim_args: the checkpoint was saved with eps=1 and cannot resume with"),
        ({"model_name_or_path": "a"}, {"model_name_or_path": "b"}, ["adapter_config.json"], "model_name_or_path: the checkpoint was saved with a "),
        ({"sft": {}}, {}, [], r"checkpoint-1 is of an SFT run: start GRPO with --model_name_or_path .*/checkpoint-1 and another"),
        ({}, {"sft": {}}, [], r"checkpoint-1 is of a GRPO run: start SFT with --model_name_or_path "),
    ],
)  # fmt: skip
def test_a_checkpoint_keeps_what_is_in_it(tmp_path, before, now, others, message):
    checkpoint = saved(tmp_path / "run", before | {"max_steps": 1}, *others)
    with pytest.raises(UserError, match=message):
        find_checkpoint(tmp_path / "another", str(checkpoint), now)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"global_step": '])
def test_auto_does_not_begin_anew_where_checkpoints_are_damaged(tmp_path, content):
    checkpoint = saved(tmp_path / "run", {})
    (checkpoint / "trainer_state.json").write_text(content)
    with pytest.raises(
        UserError, match=r"no checkpoint in .*/run is complete: .*--model_name_or_path .*/checkpoint-1; or "
    ):
        find_checkpoint(tmp_path / "run", "auto", {})
    with pytest.raises(UserError, match=r"checkpoint-1/trainer_state.json is damaged: name another checkpoint"):
        find_checkpoint(tmp_path / "run", str(checkpoint), {})


def test_a_checkpoint_resumed_in_another_folder_wants_the_problems_of_its_run(write_recipe, tmp_path, capsys):
    recipe = write_recipe(save_steps=1, max_steps=1)
    run(recipe)
    elsewhere = ["--max_steps", "2", "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint"]
    with pytest.raises(
        UserError, match=rf"the run was started with other problems .*keys of {tmp_path}/run/recipe.yaml"
    ):
        run(recipe, *elsewhere, str(tmp_path / "run" / "checkpoint-1"), "--dataset.max_samples", "4")
    copied = shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "copies" / "checkpoint-1")
    assert run(recipe, *elsewhere, str(copied))["steps"] == 2
    assert "warning: the checkpoint's run has no recipe.yaml" in capsys.readouterr().out


def test_a_run_that_is_trained_on_has_no_final_model_until_it_ends(write_recipe, tmp_path):
    """Not that of its earlier end, which would be evaluated and exported for the new one."""
    recipe = write_recipe(save_steps=1, max_steps=1)
    run(recipe)
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    raise RuntimeError('no luck')\n")
    mine = ["--preflight", "false", "--rewards.mine.path", f"{tmp_path}/mine.py:f"]
    with pytest.raises(UserError, match="no luck"):
        run(recipe, *mine, "--resume_from_checkpoint", "auto", "--max_steps", "2")
    assert not (tmp_path / "run" / "final").exists()
    data = json.dumps([{"name": "gsm8k", "path": "."}])
    with pytest.raises(UserError, match=r"no model at '.*/run': .* a run without a final model: name one of its check"):
        dispatch(["evaluate", "--model", str(tmp_path / "run"), "--eval.datasets", data, "--out", str(tmp_path / "o")])


def test_resume_from_a_named_checkpoint_that_is_not_there(write_recipe, tmp_path):
    with pytest.raises(UserError, match=r"checkpoint-7 is not a complete checkpoint: name one \(there: none\)"):
        run(write_recipe(), "--resume_from_checkpoint", "checkpoint-7")
    assert not (tmp_path / "run").exists()


def test_auto_without_a_checkpoint_starts_at_the_beginning(write_recipe):
    assert run(write_recipe(max_steps=1), "--resume_from_checkpoint", "auto")["steps"] == 1


def test_generation_ends_at_stop_strings_and_padding_is_never_trained_on(write_recipe, tmp_path, tokenizer):
    """Every completion of a group but the longest is padded by transformers; the pads are no tokens of the policy."""
    (tmp_path / "mine.py").write_text(
        "import json\n"
        "def f(completions, completion_ids, **_):\n"
        f"    with open('{tmp_path}/seen.jsonl', 'a') as file:\n"
        "        file.writelines(json.dumps(pair) + '\\n' for pair in zip(completions, completion_ids))\n"
        "    return [0.0] * len(completions)\n"
    )
    stops = ["a", "e", "o", "t", "3"]
    template = {"user": "Q: {question} A:", "chat": False, "answer_style": "answer_tag", "stop": stops}
    rewards = {"mine": {"path": f"{tmp_path}/mine.py:f"}}
    changes = {
        "max_completion_length": 64,
        "per_device_train_batch_size": 8,
        "eval": {"before_after": True, "rewards": False},
    }
    run(write_recipe(prompt_template=template, rewards=rewards, preflight=False, **changes))
    seen = rows(tmp_path / "seen.jsonl")
    stopped = [ids for text, ids in seen if any(stop in text for stop in stops)]
    assert len(stopped) > 8
    assert len({len(ids) for ids in stopped}) > 3
    assert not any(ids[-1] == tokenizer.pad_token_id for _, ids in seen)
    overhang = [ids for text, ids in seen if tokenizer.decode(ids, skip_special_tokens=True) != text]
    assert len(overhang) > 1  # tokens such as " has", of which the text keeps " ha"
    assert all(not any(stop in text[:-1] for stop in stops) for text, _ in seen)
    logged = steps_of(tmp_path / "run")
    for step, log in enumerate(logged):
        batch = seen[step * 8 : (step + 1) * 8]
        ended = [len(ids) for text, ids in batch if ids[-1] == tokenizer.eos_token_id or text.endswith(tuple(stops))]
        assert log["completions/clipped_ratio"] == 1 - len(ended) / 8
        found = [log[f"completions/{kind}_terminated_length"] for kind in ("min", "mean", "max")]
        assert found == pytest.approx([min(ended), sum(ended) / len(ended), max(ended)])
        kept = [
            row["completion"]
            for row in read_table(tmp_path / "run" / "completions" / f"completions_{step + 1:05d}.parquet")
        ]
        assert kept == [text for text, _ in batch]
    for row in read_table(tmp_path / "run" / "completions" / "eval-000000.parquet"):
        hit = any(stop in row["completion"] for stop in stops)
        assert row["truncated"] is (row["length"] == 64 and not hit)
        assert not any(stop in row["completion"][:-1] for stop in stops)


def test_the_groups_of_a_step_are_described(write_recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def odd(completion_ids, **_):\n    return [float(len(ids) > 3) for ids in completion_ids]\n"
        "def first(completion_ids):\n    return [ids[0] / 512 for ids in completion_ids]\n"
    )
    rewards = {name: {"path": f"{tmp_path}/mine.py:{name}"} for name in ("odd", "first")}
    rewards["first"]["weight"] = 0.5
    stop = {"user": "{question}", "chat": False, "answer_style": "boxed", "stop": ["a", "e", "o", "t", "3", " "]}
    run(
        write_recipe(rewards=rewards, prompt_template=stop, per_device_train_batch_size=8, preflight=False, max_steps=3)
    )
    for log in steps_of(tmp_path / "run"):
        kept = read_table(tmp_path / "run" / "completions" / f"completions_{log['step']:05d}.parquet")
        groups = [kept[place : place + 2] for place in range(0, 8, 2)]
        distinct = [len({row["completion"] for row in group}) for group in groups]
        assert log["completions/distinct"] == pytest.approx(sum(distinct) / 8, abs=0.13)  # the texts may be cut
        alike = [row["length"] for group in groups if group[0]["reward"] == group[1]["reward"] for row in group]
        assert log["frac_tokens_zero_std"] == pytest.approx(sum(alike) / sum(row["length"] for row in kept))
        total = sum((a["reward"] - b["reward"]) ** 2 for a, b in groups)
        for name, weight in (("odd", 1.0), ("first", 0.5)):
            key = f"rewards/{name}"
            share = sum(weight * (a[key] - b[key]) * (a["reward"] - b["reward"]) for a, b in groups)
            assert log[f"{key}/variance_share"] == pytest.approx(share / total, abs=1e-5)


@pytest.mark.parametrize(
    ("unscorable", "shares"),
    [
        # within the groups: correctness 0.5, -0.5, 0, 0 and format 0, 0, 0.1, -0.1; 0.5 / 0.52 and 0.02 / 0.52
        (False, [0.5 / 0.52, 0.02 / 0.52]),
        (True, [1.0, 0.0]),  # of the second group one completion is left
    ],
)
def test_which_reward_tells_the_completions_of_a_group_apart(unscorable, shares):
    from collections import defaultdict
    from types import SimpleNamespace

    import torch

    from grpo_math.trainer.trainer import Trainer

    scores = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    scores[3] = torch.nan if unscorable else scores[3]
    trainer = SimpleNamespace(
        _metrics={"train": defaultdict(list)}, size=2, rewards_per_func=scores,
        drawn=torch.tensor([[7, 1], [7, 1], [7, 1], [8, 5]]), reward_weights=torch.tensor([1.0, 0.2]),
        reward_func_names=["correctness", "format"], multi_objective_aggregation="sum_then_normalize",
    )  # fmt: skip
    Trainer.log_groups(trainer)
    logged = trainer._metrics["train"]
    assert [logged[f"rewards/{name}/variance_share"][0] for name in trainer.reward_func_names] == pytest.approx(shares)
    assert logged["completions/distinct"] == [0.75]


def test_lora_trains_and_its_adapter_is_evaluated(write_recipe, tmp_path, capsys):
    recipe = write_recipe(use_peft=True, lora_r=2, max_steps=1)
    run(recipe)
    assert (tmp_path / "run" / "final" / "adapter_config.json").exists()
    dispatch(["evaluate", "--config", str(recipe), "--model", str(tmp_path / "run" / "final"), "--use_vllm", "false"])
    assert re.search(r"^accuracy +0\.000 \(0\.000-0\.324\)$", capsys.readouterr().out, re.MULTILINE)


def test_an_own_reward_and_two_datasets_with_other_columns(write_recipe, tmp_path, problem_folder):
    (tmp_path / "mine.py").write_text(
        "def f(completions, source, floor: float = 0.0, **_):\n    return [floor if s is None else 1.0 for s in source]\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": 1, "source": "mine"}\n' * 4)
    datasets = [{"name": "gsm8k", "path": str(problem_folder)}, {"name": "json", "path": str(tmp_path / "rows.jsonl")}]
    rewards = {"low": {"path": f"{tmp_path}/mine.py:f"}, "high": {"path": f"{tmp_path}/mine.py:f", "floor": 0.5}}
    run(write_recipe(dataset=datasets, rewards=rewards, max_steps=1, preflight=False))
    metrics = steps_of(tmp_path / "run")[0]
    assert metrics["rewards/high/mean"] >= metrics["rewards/low/mean"]


def test_a_reward_that_fails_stops_the_run_with_one_line(write_recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [float('nan')] * len(completions)\n")
    rewards, file = {"mine": {"path": f"{tmp_path}/mine.py:f"}}, tmp_path / "run" / "failed_batch.json"
    with pytest.raises(
        UserError,
        match=rf"reward mine: returned nan for the completion .*leave them out with on_reward_error: skip \(what it was given: {file}\)$",
    ):
        run(write_recipe(rewards=rewards, preflight=False))
    batch = json.loads(file.read_text())
    assert [row["solution"] for row in batch["completions"]] == ["4", "4", "3", "3"]
    assert batch["completions"][0].keys() >= {"prompt", "completion", "question", "completion_ids"}


JUDGE = """
import asyncio
from who_is_there import there  # each entry has its own copy of this file

async def judge(completions, name, **_):
    there.add(name)
    while len(there) < 2:  # one after the other they would wait for ever
        await asyncio.sleep(0.001)
    return [0.5] * len(completions)
"""


def test_a_reward_that_fails_may_be_skipped_and_is_counted(write_recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [float('nan')] * len(completions)\n")
    (tmp_path / "who_is_there.py").write_text("there = set()\n")
    (tmp_path / "judge.py").write_text(JUDGE)
    judges = {name: {"path": f"{tmp_path}/judge.py:judge", "name": name, "timeout": 60} for name in ("ann", "bob")}
    rewards = {"correctness": {}, "mine": {"path": f"{tmp_path}/mine.py:f"}} | judges
    run(write_recipe(rewards=rewards, preflight=False, on_reward_error="skip", max_steps=1))
    (row,) = steps_of(tmp_path / "run")
    assert row["rewards/mine/failed"] == 1.0
    assert row["rewards/mine/mean"] is None
    assert [row[f"rewards/{name}/{what}"] for name in judges for what in ("failed", "mean")] == [0.0, 0.5] * 2
    assert row["reward"] == 1.0
    log = (tmp_path / "run" / "training.log").read_text()
    assert "warning: skipped 4 of 4 completions: reward mine: returned nan" in log


def test_completions_are_kept_with_verdict_and_rewards(write_recipe, tmp_path):
    run(write_recipe(max_steps=5, completions={"every": 2}, **TAUGHT))
    tables = sorted((tmp_path / "run" / "completions").iterdir())
    assert [table.name for table in tables] == [f"completions_{step:05d}.parquet" for step in (1, 3, 5)]
    kept = read_table(tables[0])
    assert len(kept) == 4
    assert kept[0].keys() == {
        "step", "question", "prompt", "solution", "completion", "length", "truncated", "answer", "correct", "how",
        "rewards/length", "reward", "advantage",
    }  # fmt: skip
    metrics = steps_of(tmp_path / "run")[0]
    assert sum(row["reward"] for row in kept) / 4 == pytest.approx(metrics["reward"])
    assert sum(row["length"] for row in kept) / 4 == metrics["completions/mean_length"]
    assert sum(row["advantage"] for row in kept) == pytest.approx(0, abs=1e-4)
    assert [row["question"] for row in kept[:2]] == [kept[0]["question"]] * 2
    assert metrics["time/generate"] + metrics["time/rewards"] + metrics["time/train"] == pytest.approx(
        metrics["step_time"]
    )


@pytest.mark.parametrize(("steps", "every", "kept"), [(3, 0, 0), (3, None, 3), (1, None, 1)])
def test_completions_are_kept_at_a_rate(write_recipe, tmp_path, steps, every, kept):
    run(write_recipe(max_steps=steps, completions={"every": every}))
    assert len(list(tmp_path.glob("run/completions/completions_*"))) == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_generations": 3},
            "num_generations: 3 does not divide the 4 completions of a step (per_device_train_batch_size 4 x",
        ),
        (
            {"num_generations": 3, "generation_batch_size": 4},
            "generation_batch_size (4) must be divisible by num_generations (3)",
        ),
        (
            {"per_device_train_batch_size": 64, "num_generations": 2},
            "dataset: 16 problems, but one generation batch takes 32",
        ),
        (
            {"model_name_or_path": "no/such-model"},
            "no/such-model is not in its cache: download it and give its folder, model_name_or_path: FOLDER",
        ),
        ({"model_name_or_path": "./nowhere"}, "model_name_or_path: no model at './nowhere'"),
        ({"lr_scheduler_type": "zigzag"}, "TRL refused it: zigzag is not a valid SchedulerType"),
        ({"optim_args": "fast"}, "TRL refused the recipe: not enough values to unpack"),
        (
            {"use_liger_kernel": True},
            "use_liger_kernel: liger-kernel is not installed: use_liger_kernel: false",
        ),
        (
            {"dataloader_persistent_workers": True},
            "TRL refused the recipe: persistent_workers option needs num_workers > 0",
        ),
        ({"dtype": "float99"}, "float99"),
        ({"use_cpu": False, "bf16": True}, "bf16: no GPU on this machine supports bfloat16: give --bf16 false"),
        (
            {"eval": {"before_after": True, "datasets": {"name": "math500"}}},
            "HuggingFaceH4/MATH-500 is not in its cache: download it and give its folder, eval.datasets.path: FOLDER",
        ),
    ],
)
def test_what_trl_refuses_is_one_line(write_recipe, changes, message):
    with pytest.raises(UserError) as caught:
        run(write_recipe(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_chat_template_names_the_plain_text_templates(write_recipe, policy_folder, tmp_path):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(policy_folder)
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"has no chat template .*use a plain-text one \(r1_zero, question_only, or"):
        run(write_recipe(model_name_or_path=str(tmp_path / "bare")))


def changed_policy(policy_folder, folder, **changes) -> str:
    """A copy of the policy whose tokenizer has other settings."""
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(policy_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(write_recipe, policy_folder, tmp_path):
    model = changed_policy(policy_folder, tmp_path / "no_pad", pad_token=None)
    dispatch(["evaluate", "--config", str(write_recipe(model_name_or_path=model)), "--use_vllm", "false"])
    assert len(list((tmp_path / "run" / "evaluate").glob("*/results.json"))) == 1


def test_a_chat_template_that_refuses_the_prompt_is_one_line(write_recipe, policy_folder, tmp_path):
    refuse = "{{ raise_exception('no system message, please') }}"
    model = changed_policy(policy_folder, tmp_path / "strict", chat_template=refuse)
    with pytest.raises(
        UserError,
        match=r"the chat template of .* rejects it \(TemplateError: no system message, please, <template>:1\)",
    ):
        run(write_recipe(model_name_or_path=model))


def test_chat_template_kwargs_reach_counts_and_evaluation_too(write_recipe, policy_folder, tmp_path):
    from grpo_math.data.prompts import TEMPLATES, token_ids
    from grpo_math.models import load_tokenizer

    template = "{{ messages[0]['content'] }}{% if quiet %}QUIET{% endif %}"
    model = changed_policy(policy_folder, tmp_path / "quiet", chat_template=template)
    path = write_recipe(model_name_or_path=model, chat_template_kwargs={"quiet": True})
    recipe = load_recipe(["--config", str(path)])
    tokenizer = load_tokenizer(recipe.keys, recipe.template)
    assert tokenizer.decode(token_ids(TEMPLATES["boxed"].prompt("q", tokenizer), tokenizer)).endswith("QUIET")


@pytest.mark.parametrize(
    ("pad_is_end", "text", "filler", "kept"),
    [
        (False, "Ava 3", ["pad", "pad"], 0),
        (False, "Ava has", ["end"], 1),
        (False, "Ava has", ["pad"], 0),  # the stop string straddles prompt and completion
        (True, "Ava 3", ["end"], 0),
        (True, "Ava has", ["end"], 1),
        (True, "Ava has", [], 0),
    ],
)
def test_padding_behind_a_completion_is_told_from_its_end(tokenizer, pad_is_end, text, filler, kept):
    import types

    from grpo_math.trainer.trainer import Trainer

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    fake = types.SimpleNamespace(pad_token_id=end if pad_is_end else pad, decode=tokenizer.decode)
    trainer = types.SimpleNamespace(tokenizer=fake, eos_token_ids=[end], stop=("3",))
    whole = ids + [end if word == "end" else pad for word in filler]
    assert Trainer.sampled(trainer, whole) == whole[: len(ids) + kept]


ODD = [
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n}+1?"}],
        "reward_model": {"ground_truth": [str(n + 1), "six"], "style": "rule"},
        "level": n % 2 and "hard",
        "index": 10**30 + n,
        "source": "mine",
    }
    for n in range(8)
]
OWN = """
import json

def level(completions, level):
    return [1.0] * len(completions)

def seen(completions, prompts, solution, **columns):
    with open(__file__ + ".jsonl", "a") as file:
        for prompt, gold in zip(prompts, solution):
            print(json.dumps([prompt, gold, sorted(columns.keys() & {"level", "index", "source"})]), file=file)
    return [len(one[0]["content"]) / 100 for one in completions]
"""


def test_messages_are_the_prompt_and_columns_that_no_table_holds_are_left_out(write_recipe, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ODD))
    (tmp_path / "own.py").write_text(OWN)
    keys = {"dataset": {"name": "json", "path": str(tmp_path / "rows.jsonl")}, "max_steps": 1}
    assert run(write_recipe(**keys, output_dir=str(tmp_path / "plain")))["steps"] == 1
    left_out = "the rewards do not get index, level: the values have several types, or are too large"
    assert left_out not in capsys.readouterr().out
    path = write_recipe(**keys, rewards={"seen": {"path": f"{tmp_path}/own.py:seen"}}, preflight=False)
    assert run(path)["steps"] == 1
    assert capsys.readouterr().out.count(f"warning: {left_out}\n") == 1
    rows = [json.loads(line) for line in (tmp_path / "own.py.jsonl").read_text().splitlines()]
    request = "\n\nThink step by step and put your final answer within \\boxed{}."
    wanted = [
        [[row["prompt"][0], {"role": "user", "content": row["prompt"][1]["content"] + request}], f'["{n + 1}", "six"]']
        for n, row in enumerate(ODD)
    ]
    assert all(row[:2] in wanted and row[2] == ["source"] for row in rows)
    found = [finding for finding in check(path) if left_out in finding.says or "<|system|>" in finding.says]
    assert [finding.level for finding in found] == ["warning", "note"]
    assert found[1].says.startswith("<|system|>Be brief.<|user|>What is 0+1?\n\nThink step by step")


def test_columns_of_several_types_that_a_reward_names_are_one_line(write_recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ODD))
    (tmp_path / "own.py").write_text(OWN)
    rewards = {"level": {"path": f"{tmp_path}/own.py:level"}}
    path = write_recipe(dataset={"name": "json", "path": str(tmp_path / "rows.jsonl")}, rewards=rewards)
    line = r"^dataset: a reward reads the column level: Could not convert 'hard' .*: make it one type$"
    with pytest.raises(UserError, match=line):
        run(path)
    assert not (tmp_path / "run" / "final").exists()
    assert [re.match(line, finding.says) is not None for finding in check(path) if finding.level == "error"] == [True]


@pytest.mark.parametrize(
    ("eval_", "steps"),
    [
        ({"every": 2}, [2, 4]),
        ({"every": 2, "before_after": True}, [0, 2, 4]),
        ({"every": 3, "before_after": True}, [0, 3, 4]),
        ({"every": 9}, []),
    ],
)
def test_evaluations_along_the_way_take_no_step_out_of_the_metrics(write_recipe, tmp_path, eval_, steps):
    results = run(write_recipe(max_steps=4, eval=eval_))
    evaluations = tmp_path / "run" / "eval.jsonl"
    assert [row["step"] for row in rows(evaluations)] == steps
    assert [row["step"] for row in steps_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert ("before" in results) is eval_.get("before_after", False)


TAUGHT = {
    "rewards": {"length": {"path": str(ROOT / "tests" / "cpu_rewards.py:length")}},
    "learning_rate": 1e-2,
    "preflight": False,
}


DRAWING = """
import random
import numpy
import torch

seen = []

def drawn(completions, **_):
    seen.extend(completions)  # and remembers what it was called with
    return [len(seen) / 100 + random.random() + numpy.random.rand() + torch.rand(1).item() for _ in completions]
"""


def test_an_evaluation_changes_nothing_in_the_training(write_recipe, tmp_path):
    eval_ = {"every": 1, "before_after": True, "best": True, "samples": 3, "temperature": 1.5, "batch_size": 6}
    (tmp_path / "drawing.py").write_text(DRAWING)
    rewards = {"drawn": {"path": f"{tmp_path}/drawing.py:drawn"}, **TAUGHT["rewards"]}
    for name, changes in (("with", {"eval": eval_}), ("without", {})):
        run(write_recipe(max_steps=3, output_dir=str(tmp_path / name), **TAUGHT | {"rewards": rewards}, **changes))
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    kept = [
        [
            {key: value for key, value in row.items() if "time" not in key and key != "tokens_per_second"}
            for row in steps_of(tmp_path / name)
        ]
        for name in ("with", "without")
    ]
    assert kept[0] == kept[1]
    assert any(row["grad_norm"] > 0 for row in kept[0])
    sampled = read_table(tmp_path / "with" / "completions" / "eval-000003.parquet")
    assert len(sampled) == 8 * 3
    assert len({row["completion"] for row in sampled}) > 8


def test_the_best_model_is_kept(write_recipe, tmp_path, monkeypatch):
    from dataclasses import replace

    from grpo_math.evaluation import summary
    from grpo_math.evaluation.statistics import Figure

    low = {0: 0.2, 1: 0.1, 2: 0.4, 3: 0.4}
    plain = summary.summarise

    def scripted(rows, dataset, step, seconds):
        found = plain(rows, dataset, step, seconds)
        return replace(found, figures=found.figures | {"accuracy": Figure(0.9, low[step], 1.0)})

    monkeypatch.setattr(summary, "summarise", scripted)
    eval_ = {"every": 1, "before_after": True, "best": True}
    results = run(write_recipe(max_steps=3, save_steps=1, save_total_limit=1, eval=eval_, **TAUGHT))
    assert results["best"]["step"] == 2
    folder = tmp_path / "run"
    best, last = ((folder / name / "model.safetensors").read_bytes() for name in ("best", "final"))
    assert best != last
    assert not (folder / "checkpoint-2").exists()  # the best is in nobody's way
    dispatch(
        ["evaluate", "--config", str(folder / "recipe.yaml"), "--model", str(folder / "best"), "--use_vllm", "false"]
    )


def test_several_datasets_are_told_apart_and_count_together(write_recipe, tmp_path, problem_folder):
    (tmp_path / "own.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n' * 3)
    datasets = [{"name": "gsm8k", "path": str(problem_folder)}, {"name": "json", "path": str(tmp_path / "own.jsonl")}]
    results = run(write_recipe(max_steps=1, eval={"before_after": True, "datasets": datasets}))
    assert (results["after"]["dataset"], results["after"]["problems"]) == ("all datasets", 11)
    found = [(row["step"], row["dataset"]) for row in rows(tmp_path / "run" / "eval.jsonl")]
    names = ["gsm8k test", "own test", "all datasets"]
    assert found == [(0, name) for name in names] + [(1, name) for name in names]
    (first, _, _) = rows(tmp_path / "run" / "metrics.jsonl")
    assert {
        "eval/accuracy",
        "eval/accuracy_low",
        "eval/length",
        "eval/gsm8k_test_accuracy",
        "eval/own_test_accuracy",
    } <= first.keys()
    assert first["step"] == 0


def test_evaluations_have_the_figures_of_the_rewards(write_recipe, problem_folder, tmp_path):
    eval_ = {"before_after": True, "every": 1, "batch_size": 3}
    rewards = {"heuristic": {}, "format": {"weight": 0.5}}
    results = run(write_recipe(rewards=rewards, eval=eval_, max_completion_length=24, preflight=False))
    folder = tmp_path / "run"
    problems = load_problems(DatasetSpec(name="gsm8k", path=str(problem_folder), split="test")).problems
    evaluations = rows(folder / "eval.jsonl")
    logged = [row for row in rows(folder / "metrics.jsonl") if "eval/accuracy" in row]
    assert [row["step"] for row in evaluations] == [row["step"] for row in logged] == [0, 1, 2]
    assert [results[moment]["reward"] for moment in ("before", "after")] == [evaluations[n]["reward"] for n in (0, -1)]
    for evaluation, metrics in zip(evaluations, logged, strict=True):
        completions = read_table(folder / "completions" / f"eval-{evaluation['step']:06d}.parquet")
        texts, golds = ([row[column] for row in completions] for column in ("completion", "gold"))
        scores = heuristic(texts, golds, [problem.worked for problem in problems])
        assert evaluation["rewards/heuristic"] == pytest.approx(sum(scores) / 8) != 0
        assert [row["rewards/heuristic"] for row in completions] == pytest.approx(scores)
        sums = [score + 0.5 * row["rewards/format"] for score, row in zip(scores, completions, strict=True)]
        assert [row["reward"] for row in completions] == pytest.approx(sums)
        for name in ("reward", "reward_low", "reward_high", "rewards/heuristic", "rewards/format_high"):
            assert metrics[f"eval/{name}"] == evaluation[name]
        assert evaluation["reward"] == pytest.approx(sum(sums) / 8)


UNEVEN = """
def named(completions, source):
    return [float(len(str(one)) % 7) for one in completions]

def careless(completions, **columns):
    return [float(len(str(one)) % 7) for one in columns["source"]]
"""


def test_rewards_that_held_out_problems_do_not_allow_are_known_before(write_recipe, tmp_path, problem_folder, capsys):
    (tmp_path / "uneven.py").write_text(UNEVEN)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "{n}+0?", "answer": {n}, "source": "mine"}}\n' for n in range(4))
    )
    eval_ = {"before_after": True, "datasets": {"name": "gsm8k", "path": str(problem_folder)}}
    dataset = {"name": "json", "path": str(tmp_path / "rows.jsonl")}
    rewards = {name: {"path": f"{tmp_path}/uneven.py:{name}"} for name in ("named", "careless")}
    rewards["correctness"] = {"weight": 100.0}
    keys = {"dataset": dataset, "eval": eval_, "max_steps": 1}
    careless = write_recipe(**keys, rewards=rewards)
    line = "evaluation on gsm8k test: rewards/named and reward are not computed: rewards.named needs source"
    failed = r"reward careless: raised KeyError: 'source', uneven.py:6; .*\(seen with held-out problems, gsm8k test\)"
    found = [finding for finding in check(careless) if line in finding.says or "held-out" in finding.says]
    assert [finding.level for finding in found] == ["note", "error"]
    assert re.match(failed, found[1].says)
    with pytest.raises(UserError, match=rf"{failed}: eval: \{{rewards: false\}}$"):
        run(careless)
    with pytest.raises(
        UserError, match=r"^reward careless: raised KeyError: 'source', uneven.py:6; .*failed_batch.json"
    ):
        run(careless, "--preflight", "false")
    capsys.readouterr()
    run(careless, "--eval.rewards", "false")  # the fix
    assert line not in capsys.readouterr().out
    assert "eval/reward" not in rows(tmp_path / "run" / "metrics.jsonl")[0]
    named = write_recipe(**keys, rewards=rewards | {"careless": False}, output_dir=str(tmp_path / "named"))
    run(named)
    assert capsys.readouterr().out.count(f"warning: {line}\n") == 1
    (first, *_) = rows(tmp_path / "named" / "metrics.jsonl")
    assert {name for name in first if name.startswith("eval/reward")} == {
        f"eval/rewards/correctness{end}" for end in ("", "_low", "_high")
    }
