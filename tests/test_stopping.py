"""A training that ends before its last step, because an evaluation says that it is done: eval.stop_at, eval.patience."""

import json
import shutil

import pytest
from conftest import ROWS

from grpo_math.check import check
from grpo_math.errors import UserError
from grpo_math.recipe.parts import EvalSpec
from grpo_math.recipe.recipe import load_recipe
from grpo_math.report.data import read_run
from grpo_math.report.list_runs import row
from grpo_math.report.summary import state
from grpo_math.runs.folder import read_rows
from grpo_math.sft import sft
from grpo_math.train import train
from grpo_math.trainer.callbacks import why_end


def evaluations(*accuracies: float) -> list[dict]:
    return [{"accuracy": accuracy, "accuracy_low": accuracy - 0.1} for accuracy in accuracies]


@pytest.mark.parametrize(
    ("keys", "accuracies", "reason"),
    [
        ({}, (0.5, 0.5, 0.5, 0.5), ""),
        ({"stop_at": 0.8}, (0.95, 0.89), ""),  # the lower end is 0.79; of the last evaluation alone
        ({"stop_at": 0.8}, (0.5, 0.91), "eval.stop_at 0.8"),
        ({"patience": 1}, (0.5,), ""),
        ({"patience": 1}, (0.5, 0.6), ""),
        ({"patience": 1}, (0.5, 0.5), "eval.patience 1"),
        ({"patience": 3}, (0.5, 0.5, 0.5, 0.5, 0.5), ""),  # not yet two times three
        ({"patience": 3}, (0.1, 0.2, 0.3, 0.3, 0.2, 0.1), "eval.patience 3"),  # means of 0.2 both
        ({"patience": 3}, (0.5, 0.9, 0.6, 0.7, 0.7, 0.7), ""),  # none above 0.9, and a mean of 0.7 after one of 0.667
        ({"patience": 3}, (0.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6), "eval.patience 3"),  # the first one no longer counts
        ({"patience": 2, "stop_at": 0.5}, (0.7, 0.7, 0.7, 0.7), "eval.stop_at 0.5"),
    ],
)
def test_when_the_evaluations_end_the_training(keys, accuracies, reason):
    assert why_end(EvalSpec(every=1, **keys), evaluations(*accuracies)) == reason


def test_a_run_without_patience_left_is_finished(write_recipe, tmp_path, capsys):
    """A random policy: nothing is ever right, and all evaluations are equal."""
    folder = tmp_path / "run"
    eval_ = {"every": 1, "before_after": True, "best": True, "patience": 2}
    recipe = write_recipe(max_steps=6, save_steps=2, eval=eval_)

    def resume(*arguments, checkpoint="auto") -> dict:
        words = ["--config", str(recipe), "--resume_from_checkpoint", str(checkpoint), *arguments]
        return train(load_recipe(words))

    def check_end(results: dict, step: int, patience: int) -> None:
        assert results["steps"] == step
        assert results["stopped"] == f"eval.patience {patience} at step {step}"
        made = read_rows(folder / "eval.jsonl")
        assert [row["step"] for row in made] == [*range(step + 1)]
        assert (results["before"], results["after"], results["best"]) == (made[0], made[-1], made[0])
        assert [row["step"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row] == [*range(1, step + 1)]
        assert (folder / f"checkpoint-{step}").exists()
        assert (folder / "final" / "model.safetensors").exists()

    results = train(recipe)
    check_end(results, 3, 2)
    assert json.loads((folder / "results.json").read_text()) == results
    assert "eval.patience 2 at step 3: the training ends here" in capsys.readouterr().out
    assert state(read_run(folder)) == "finished, 3 steps (eval.patience 2 at step 3)"
    assert row(folder)[:2] == ["finished, eval.patience 2 at step 3", "3/3"]

    assert resume() == results
    assert "already finished, 3 steps (eval.patience 2 at step 3; change that key" in capsys.readouterr().out
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "final")
    check_end(resume(), 3, 2)  # killed between its last step and its end: nothing is trained or evaluated again
    check_end(resume(checkpoint=folder / "checkpoint-2"), 3, 2)  # which knows its three evaluations
    check_end(resume("--eval.patience", "3"), 5, 3)
    assert resume("--eval.patience", "null")["steps"] == 6
    assert "stopped" not in json.loads((folder / "results.json").read_text())


def test_a_warm_start_ends_where_it_is_good_enough(write_recipe, tmp_path, problem_folder):
    (tmp_path / "easy.jsonl").write_text("".join(json.dumps(ROWS[0]) + "\n" for _ in range(16)))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(ROWS[0] | {"question": f"{n}"}) + "\n" for n in range(8)))
    recipe = write_recipe(
        sft={"target": "answer"},
        rewards=None,
        num_generations=None,
        max_completion_length=None,
        dataset={"name": "gsm8k", "path": str(tmp_path / "easy.jsonl")},
        eval={
            "every": 10,
            "stop_at": 0.6,
            "datasets": {"name": "gsm8k", "path": str(tmp_path / "test.jsonl")},
            "max_completion_length": 24,
        },
        max_steps=60,
        learning_rate=1e-2,
    )
    results = sft(recipe)
    assert results["stopped"] == f"eval.stop_at 0.6 at step {results['steps']}"
    assert results["steps"] < 60


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stop_at": 0.9, "before_after": True}, "eval.stop_at: needs evaluations during the training"),
        ({"patience": 3}, "eval.patience: needs evaluations during the training: add every: 20"),
        ({"stop_at": 1.0, "every": 1}, "eval.stop_at: expected a number above 0 to below 1, got 1.0"),
        ({"stop_at": 90, "every": 1}, "eval.stop_at: expected a number above 0 to below 1, got 90"),
        ({"patience": 0, "every": 1}, "eval.patience: expected at least 1, got 0"),
        # 8 / (8 + 1.96^2) = 0.676, and n / (n + 3.84) = 0.9 for n = 34.6
        (
            {"stop_at": 0.9, "every": 1},
            "eval.stop_at: 0.9 cannot be reached: with all 8 problems right, the lower end of the accuracy interval is "
            "0.676: lower it, or evaluate on at least 35 problems",
        ),
    ],
)
def test_what_would_never_end_a_training_is_one_line(write_recipe, keys, message):
    with pytest.raises(UserError) as error:
        train(write_recipe(eval=keys))
    assert message in str(error.value)


def test_enough_problems_are_no_error(write_recipe, tmp_path):
    test = tmp_path / "test.jsonl"
    for count, found in ((34, ["error"]), (35, [])):
        test.write_text("".join(json.dumps(ROWS[0] | {"question": f"{n} apples?"}) + "\n" for n in range(count)))
        eval_ = {"every": 1, "stop_at": 0.9, "datasets": {"name": "gsm8k", "path": str(test)}}
        assert [one.level for one in check(write_recipe(eval=eval_)) if one.says.startswith("eval.stop_at")] == found
