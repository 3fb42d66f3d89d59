"""Dynamic sampling: which groups replace which, what is logged, and that a resumed run draws what it would have drawn."""

from itertools import chain, compress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from grpo_math.check import check
from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_rows, read_table
from grpo_math.train import train
from grpo_math.trainer.groups import replaced, unseen
from grpo_math.trainer.trainer import Trainer

SIZE = 2  # completions per group


@given(st.lists(st.booleans(), max_size=12), st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_groups_stay_whole_and_in_order_and_signal_is_never_lost(level, further, size):
    batch = [("first", group, place) for group in range(len(level)) for place in range(size)]
    fresh = [("further", group, place) for group in compress(range(len(further)), further) for place in range(size)]
    rows = replaced(batch, [one for one in level for _ in range(size)], fresh)
    groups = [rows[place : place + size] for place in range(0, len(rows), size)]
    assert len(groups) == len(level)
    assert all(len({row[:2] for row in group}) == 1 for group in groups)
    assert all([row[2] for row in group] == list(range(size)) for group in groups)
    kept = [group[0][1] for group in groups if group[0][0] == "first"]
    taken = [group[0][1] for group in groups if group[0][0] == "further"]
    signal = [place for place, one in enumerate(level) if not one]
    assert set(signal) <= set(kept)
    assert kept == sorted(kept)
    useful = list(compress(range(len(further)), further))
    assert taken == useful[: sum(level)]
    places = [place for place, group in enumerate(groups) if group[0][0] == "further"]
    assert places == [place for place, one in enumerate(level) if one][: len(taken)]


def test_further_prompts_follow_from_the_step_alone_and_never_repeat():
    rows = [{"prompt": [{"role": "user", "content": str(number % 10)}]} for number in range(30)]
    seen = {str(rows[3]["prompt"]), str(rows[7]["prompt"])}
    drawn = [row["prompt"][0]["content"] for row in unseen(rows, set(seen), (0, 5))]
    assert sorted(drawn) == ["0", "1", "2", "4", "5", "6", "8", "9"]
    assert drawn == [row["prompt"][0]["content"] for row in unseen(rows, set(seen), (0, 5))]
    others = [[row["prompt"][0]["content"] for row in unseen(rows, set(seen), key)] for key in ((0, 6), (1, 5))]
    assert all(sorted(other) == sorted(drawn) != other != drawn for other in others)


OWN = """
def own(completions, completion_ids, question, log_extra, log_metric, **_):
    lucky = [" more. How many" in one and " gets 1 " in one for one in question]
    log_extra("lucky", lucky)
    log_metric("luck", sum(lucky) / len(lucky))
    return [0.5 + place % 2 * one for place, one in enumerate(lucky)]
"""  # signal with "gets 1 more" alone: in 6 of the 16 problems


@pytest.fixture
def rounds(monkeypatch):
    """Of every round of generation the step, for each group what its question gets, and the tokens; completions have one
    to three."""
    seen = []

    def fixed(self, prompt_ids, images, fields, num_generations, *_):
        with self.timed("generate"):
            texts = self.processing_class.batch_decode(prompt_ids[::num_generations])
            completions = [[7] * (1 + place % 3) for place in range(len(prompt_ids))]
            tokens = sum(map(len, prompt_ids + completions))
            seen.append((self.state.global_step, [text.partition(" more.")[0][-1] for text in texts], tokens))
            return completions, None

    monkeypatch.setattr(Trainer, "_generate_single_turn", fixed)
    return seen


def test_level_groups_are_replaced_and_the_metrics_describe_the_first_round(write_recipe, tmp_path, rounds):
    (tmp_path / "own.py").write_text(OWN)
    recipe = write_recipe(
        rewards={"own": {"path": f"{tmp_path}/own.py:own", "weight": 2.0}},
        dynamic_sampling={"rounds": 3},
        prompts_per_step=4,
        num_generations=SIZE,
        max_steps=5,
        completions={"every": 1},
        preflight=False,
    )
    train(load_recipe(["--config", str(recipe)]))
    used_by_step = []
    logs = read_rows(tmp_path / "run" / "metrics.jsonl")
    for step, log in enumerate(logs):
        first, *further = [groups for at, groups, _ in rounds if at == step]
        expected, missing = list(first), 4 - first.count("1")
        for groups in further:  # as many as are missing
            assert len(groups) == 4 - expected.count("1")
            lucky = groups.count("1")
            for _ in range(lucky):
                expected[next(place for place, one in enumerate(expected) if one != "1")] = "1"
        kept = read_table(tmp_path / "run" / "completions" / f"completions_{step + 1:05d}.parquet")
        assert [row["question"].partition(" more.")[0][-1] for row in kept[::SIZE]] == expected
        assert len({row["question"] for row in kept}) == 4
        assert all(row["lucky"] == (" gets 1 " in row["question"]) for row in kept)
        assert all(row["prompt"][0]["content"].startswith(row["question"]) for row in kept)
        assert [row["reward"] for row in kept] == [
            1.0 + 2 * (place % 2) * row["lucky"] for place, row in enumerate(kept)
        ]
        assert [row["advantage"] != 0 for row in kept] == [row["lucky"] for row in kept]
        generated, used = len(list(chain(first, *further))), expected.count("1")
        assert [log[f"dynamic_sampling/{name}"] for name in ("rounds", "generated_groups", "used_groups")] == [
            1 + len(further), generated, used
        ]  # fmt: skip
        assert len(further) == 2 or used == 4
        rewards = [1.0, 3.0] * (4 - missing) + [1.0, 1.0] * missing  # of the first round
        assert log["reward"] == pytest.approx(sum(rewards) / 8)
        assert log["reward_std"] == pytest.approx(torch.tensor(rewards).std().item())
        assert log["rewards/own/mean"] == pytest.approx(sum(rewards) / 16)
        assert log["rewards/own/std"] == pytest.approx(log["reward_std"] / 2)
        assert log["frac_reward_zero_std"] == missing / 4
        assert log["luck"] == 1 - missing / 4
        assert log["completions/mean_length"] == (1 + 2 + 3 + 1 + 2 + 3 + 1 + 2) / 8
        assert log["num_tokens"] == sum(tokens for at, _, tokens in rounds if at <= step)
        used_by_step.append(used)
    assert {log["dynamic_sampling/rounds"] for log in logs} == {2, 3}
    assert max(used_by_step) == 4 > min(used_by_step)
    assert any(log["frac_reward_zero_std"] < 1 for log in logs)


def test_a_dataset_that_is_used_up_ends_the_rounds(write_recipe, tmp_path, rounds):
    (tmp_path / "own.py").write_text(OWN.replace("gets 1", "gets 9"))
    recipe = write_recipe(
        rewards={"own": {"path": f"{tmp_path}/own.py:own"}},
        dynamic_sampling={"rounds": 9},
        per_device_train_batch_size=12,
        max_steps=1,
        preflight=False,
    )
    train(load_recipe(["--config", str(recipe)]))
    (log,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [len(groups) for _, groups, _ in rounds] == [6, 6, 4]
    assert (log["dynamic_sampling/generated_groups"], log["dynamic_sampling/used_groups"]) == (16, 0)


def test_a_resumed_run_draws_what_it_would_have_drawn(write_recipe, tmp_path):
    """With a generation batch of two steps, stop strings, and completions that are sampled."""
    keys = {
        "dynamic_sampling": {"rounds": 3},
        "rewards": {"own": {"path": f"{tmp_path}/own.py:own"}},
        "prompt_template": {"user": "{question}", "chat": False, "answer_style": "boxed", "stop": ["a", "e", " "]},
        "steps_per_generation": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_steps": 2,
        "preflight": False,
    }
    (tmp_path / "own.py").write_text(
        "def own(completion_ids, **_):\n    return [float(sum(ids) % 4 == 0) for ids in completion_ids]\n"
    )
    train(load_recipe(["--config", str(write_recipe(**keys, max_steps=4, output_dir=str(tmp_path / "whole")))]))
    recipe = write_recipe(**keys, max_steps=2, output_dir=str(tmp_path / "halves"))
    train(load_recipe(["--config", str(recipe)]))
    train(load_recipe(["--config", str(recipe), "--max_steps", "4", "--resume_from_checkpoint", "auto"]))
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole, halves = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "halves"))
    names = [name for name in whole[2] if name.startswith(("dynamic", "reward", "num_tokens", "loss"))]
    assert [[row.get(name) for name in names] for row in whole] == [[row.get(name) for name in names] for row in halves]
    assert max(row.get("dynamic_sampling/rounds", 0) for row in whole) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamic_sampling": {"rounds": 1}}, "dynamic_sampling.rounds: "),
        ({"dynamic_sampling": {"rounds": 3}, "baseline": "none"}, "dynamic_sampling: it drops zero-std groups"),
    ],
)
def test_what_a_recipe_may_not_say(write_recipe, changes, message):
    with pytest.raises(UserError, match=message):
        load_recipe(["--config", str(write_recipe(**changes))])


def test_check_counts_the_prompts_of_all_rounds(write_recipe):
    def found(rounds: int) -> list:
        recipe = write_recipe(dynamic_sampling={"rounds": rounds}, prompts_per_step=4, per_device_train_batch_size=None)
        return [one for one in check(recipe) if "dynamic_sampling" in one.says]

    warned, table = sorted(found(5), key=lambda one: one.level != "warning")
    assert warned.says.startswith("dynamic_sampling: 5 rounds of 4 prompts need 20 different ones, and there are 16")
    assert warned.fix == "dynamic_sampling: {rounds: 4}"
    assert "groups per generation, at most    20  in 5 rounds" in table.says
    assert [one.level for one in found(4)] == ["note"]
