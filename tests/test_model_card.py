"""The model card of a run: parsed as the Hub would, its code executed."""

import json
import re

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe, trainer_dtype
from grpo_math.report.model_card import public, write_card
from grpo_math.train import train

ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"trl": "1.16.0"},
    "gpus": ["NVIDIA H100"] * 2,
    "dataset_fingerprint": "abc",
}


def row(dataset: str, step: int, accuracy: float) -> dict:
    values = dict.fromkeys(("accuracy", "format_accuracy", "truncated"), accuracy)
    ends = {f"{name}_{end}": accuracy + shift for name in values for end, shift in (("low", -0.05), ("high", 0.05))}
    return {"dataset": dataset, "step": step, "problems": 1319, "samples": 1, **values, **ends}


def card_of(recipe, folder, results) -> ModelCard:
    folder.mkdir(parents=True, exist_ok=True)
    write_card(recipe, folder, results, ENVIRONMENT)
    return ModelCard.load(folder / "README.md")


def code(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)```", card.text, re.S)[1]


def test_the_card_names_base_data_rewards_and_results_for_the_hub_and_for_people(write_recipe, tmp_path):
    dataset = [{"name": "gsm8k"}, {"name": "math", "split": "train"}]
    own = str(tmp_path / "mine.py:f")
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [0.0] * len(completions)\n")
    rewards = {"correctness": {"weight": 1.0}, "mine": {"path": own, "weight": 0.2}}
    eval_ = {"before_after": True, "datasets": [{"name": "gsm8k"}, {"name": "math500"}]}
    changes = {"model_name_or_path": "Qwen/Qwen2.5-0.5B", "dataset": dataset, "rewards": rewards, "eval": eval_}
    recipe = load_recipe(
        ["--config", str(write_recipe(**changes, use_vllm=True, vllm_server_base_url="http://10.0.0.7:8000"))]
    )
    run = tmp_path / "run"
    run.mkdir()
    titles = ("gsm8k test", "math500 test", "all datasets")
    rows = [row(title, step, value) for step, value in ((0, 0.25), (40, 0.5)) for title in titles]
    rows.append(row("gsm8k test", 40, 0.9) | {"weights": "of a checkpoint, beside the run"})
    (run / "eval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (run / "final" / "ref").mkdir(parents=True)  # as TRL leaves it
    card = card_of(recipe, run / "final", {"steps": 40})

    data = card.data
    assert data.base_model == "Qwen/Qwen2.5-0.5B"
    assert data.datasets == ["EleutherAI/hendrycks_math", "openai/gsm8k"]
    assert (data.library_name, data.tags, data.model_name) == ("transformers", ["grpo", "trl", "grpo-math"], "run")
    results = [(one.dataset_type, one.dataset_split, one.metric_type, one.metric_value) for one in data.eval_results]
    assert results == [("openai/gsm8k", "test", "accuracy", 0.5), ("HuggingFaceH4/MATH-500", "test", "accuracy", 0.5)]
    assert "| dataset | problems | samples | | before | after |" in card.text
    assert "| gsm8k test | 1,319 | 1 | accuracy | 0.250 (0.200-0.300) | 0.500 (0.450-0.550) |" in card.text
    assert "| all datasets | 1,319 |" in card.text
    assert "| mine | 0.2 | mine.py:f |" in card.text
    assert "on 2 x NVIDIA H100." in card.text
    assert f'from_pretrained(name, dtype="{trainer_dtype(recipe.keys)}")' in code(card)
    assert "`ref/` holds the adapter that this training started from." in card.text
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.S)[1])
    assert shown["rewards"]["mine"] == {"path": "mine.py:f", "weight": 0.2}
    assert not {"output_dir", "vllm_server_base_url"} & shown.keys()
    assert str(tmp_path) not in card.content


@pytest.mark.parametrize("changes", [
    {"eval": {"before_after": True, "max_completion_length": 4}},
    {"prompt_template": "r1_zero", "use_peft": True, "lora_r": 2},
    {"prompt_template": {"user": "{question}", "prefill": "Well,", "system": "Answer."}},
])  # fmt: skip
def test_a_run_ends_with_a_card_whose_code_runs(write_recipe, tmp_path, monkeypatch, capsys, changes):
    recipe = write_recipe(max_steps=1, save_steps=1, preflight=False, **changes)
    train(load_recipe(["--config", str(recipe)]))
    card = ModelCard.load(tmp_path / "run" / "final" / "README.md")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "run" / "final")
    exec(code(card), {})
    assert capsys.readouterr().out.strip()
    assert card.data.base_model is None
    assert "`ref/`" not in card.text
    assert card.data.library_name == ("peft" if "use_peft" in changes else "transformers")
    assert not (tmp_path / "run" / "README.md").exists()  # TRL's
    assert ("0.000 (0.000-0.324)" in card.text) is ("eval" in changes)
    assert f"the local model {tmp_path.name}" not in card.text
    assert str(tmp_path) not in card.content


def test_push_to_hub_sends_the_model_with_this_card_once(write_recipe, tmp_path, monkeypatch):
    """The Hub cannot be here: its two calls are recorded."""
    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **arguments: calls.append(arguments))
    recipe = write_recipe(
        push_to_hub=True, hub_model_id="me/tiny", save_steps=1, eval={"before_after": True, "best": True}
    )
    train(load_recipe(["--config", str(recipe)]))
    (call,) = calls
    assert call["repo_id"] == "me/tiny"
    assert call["folder_path"] == tmp_path / "run" / "final"
    card = ModelCard.load(call["folder_path"] / "README.md")
    assert card.data.eval_results is None  # of local files, no claim on the Hub
    assert "| gsm8k test | 8 |" in card.text
    assert (call["folder_path"] / "model.safetensors").exists()


def test_a_hub_that_refuses_is_one_line_after_the_run_is_finished(write_recipe, tmp_path, monkeypatch):
    def refuse(self, **_):
        raise ConnectionError("no route to the Hub\nand more")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    with pytest.raises(
        UserError, match="push_to_hub: me/tiny did not take it: no route to the Hub: the run is finished"
    ):
        train(load_recipe(["--config", str(write_recipe(push_to_hub=True, hub_model_id="me/tiny", max_steps=1))]))
    assert (tmp_path / "run" / "results.json").exists()


def test_what_is_local_is_not_shown_and_prompts_are_left_alone():
    keys = {
        "pass_rate": {"file": "/home/ann/rates.parquet", "min": 0.1},
        "vllm_server_host": "10.0.0.7",
        "datasets": ["~/data/x.jsonl", "runs/sft/final"],
        "output_dir": "runs/x",
    }
    assert public(keys) == {
        "pass_rate": {"file": "rates.parquet", "min": 0.1},
        "datasets": ["x.jsonl", "runs/sft/final"],
    }
    for template in TEMPLATES.values():
        assert public(template.user) == template.user
    assert public("1 / 2 or </think> /no_think") == "1 / 2 or </think> /no_think"
