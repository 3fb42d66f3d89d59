"""What a notebook imports: the functions behind the commands."""

import logging
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import grpo_math
from grpo_math import load_recipe
from grpo_math.errors import UserError


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "from grpo_math import train",
        "import grpo_math.train; from grpo_math import train",
        "from grpo_math import train; import grpo_math.train",
        "from grpo_math.train import main; from grpo_math import train",
        "import grpo_math.check, grpo_math.train; train = grpo_math.train; assert callable(grpo_math.check)",
    ],
)
def test_a_name_is_the_function_whatever_was_imported_before(code):
    assert run_python(f"{code}\nimport sys; print(train is sys.modules['grpo_math.train'].train)") == "True"


def test_the_package_loads_nothing_before_a_name_is_used():
    code = "import sys, grpo_math; print([name for name in sys.modules if name.startswith('grpo_math.')])"
    assert run_python(code) == "[]"


def test_every_public_name_is_a_documented_function():
    assert {*grpo_math.__all__} <= {*dir(grpo_math)}  # what a notebook completes
    for name in grpo_math.__all__:
        assert callable(getattr(grpo_math, name))
        assert getattr(grpo_math, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        grpo_math.trian  # noqa: B018


def test_a_recipe_is_loaded_with_keys_replaced(write_recipe, tmp_path):
    path = write_recipe(rewards={"correctness": {"weight": 2.0}})
    overrides = {"learning_rate": 2e-6, "rewards": {"format": {"weight": 0.5}}, "dataset.max_samples": 3}
    recipe = load_recipe(path, **overrides, output_dir=tmp_path / "other")
    assert (recipe.trainer["learning_rate"], recipe.output_dir) == (2e-6, tmp_path / "other")
    assert [(spec.name, spec.weight) for spec in recipe.rewards] == [("correctness", 2.0), ("format", 0.5)]
    assert recipe.datasets[0].max_samples == 3
    assert load_recipe(recipe) is recipe
    assert load_recipe(str(path)).trainer["learning_rate"] == 1e-3
    with pytest.raises(UserError, match="learning_rat: unknown key, did you mean learning_rate"):
        load_recipe(path, learning_rat=1)
    with pytest.raises(TypeError, match="seed: give the recipe's file"):
        load_recipe(recipe, seed=1)


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("gsm8k_qwen2.5_1.5b")
    assert recipe.model["model_name_or_path"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert recipe.output_dir.as_posix() == "runs/gsm8k_qwen2.5_1.5b"
    (tmp_path / "quickstart").mkdir()  # a folder of that name is no recipe
    assert load_recipe("quickstart").trainer["use_cpu"] is True


def test_train_returns_the_results_that_the_command_writes(write_recipe, tmp_path):
    import json

    from grpo_math import train

    recipe, before = write_recipe(eval={"before_after": True}), global_state()
    results = train(recipe, max_steps=1)
    assert results["steps"] == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    lines = repr(results).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["steps", "before", "after", "keys"]
    assert lines[1].endswith(", 8 problems")
    again = train(recipe, max_steps=1, resume_from_checkpoint="auto")
    assert repr(again) == repr(results)
    with pytest.raises(UserError, match="already holds a run") as mistake:
        train(recipe, max_steps=1)
    assert mistake.value._render_traceback_() == [f"error: {mistake.value}"]  # what a notebook prints
    (comparison,) = grpo_math.compare(tmp_path / "run", tmp_path / "run")
    assert "8 problems: A 0.000, B 0.000, difference +0.000" in repr(comparison)
    assert global_state() == before


def global_state() -> tuple:
    """What a run changes in its process, and undoes at its end."""
    loggers = [logging.getLogger(name) for name in ("grpo_math", "trl", "transformers", "accelerate")]
    handlers = [
        handler for logger in loggers for handler in logger.handlers if isinstance(handler, logging.FileHandler)
    ]
    ours = loggers[0]
    return (
        handlers, [*ours.handlers], ours.level, ours.propagate, logging.raiseExceptions,
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    )  # fmt: skip


def test_a_script_or_a_notebook_is_not_named_as_a_module_of_ours(monkeypatch):
    from grpo_math.runs.folder import command

    monkeypatch.setattr(sys, "argv", ["/somewhere/my_run.py", "--fast"])
    assert command() == ["python", "my_run.py", "--fast"]
    monkeypatch.setattr(sys, "argv", [f"{ROOT}/src/grpo_math/train.py", "--config", "r.yaml"])
    assert command() == ["python", "-m", "grpo_math.train", "--config", "r.yaml"]
