"""The quickstart teaches: held-out accuracy from at most 0.3 to 0.95, on average and, by its interval, on each seed."""

import json
import random
import subprocess
import sys
from statistics import fmean

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.data.loading import load_problems
from grpo_math.data.problem import DatasetSpec
from grpo_math.errors import UserError
from grpo_math.quickstart import (
    ONE_STEP,
    TWO_STEP,
    WarmStart,
    arithmetic_facts,
    make_problem,
    make_room,
    prepare,
    write_problems,
)


@given(st.integers(0, 10**9), st.sampled_from([ONE_STEP, TWO_STEP]))
def test_every_problem_is_solved_by_its_steps(seed, templates):
    problem = make_problem(random.Random(seed), templates)
    assert all(eval(left) == result >= 0 for left, result in problem["steps"])
    assert problem["steps"][-1][1] == problem["answer"]
    numbers = [word.strip(".,?") for word in problem["question"].split() if word.strip(".,?").isdigit()]
    assert len(numbers) == len(problem["steps"]) + 1


def test_held_out_problems_are_not_in_training_and_read_as_gsm8k(tmp_path):
    write_problems(tmp_path, seed=0)
    train, test = (
        load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path), split=split)).problems
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (512, 200)
    assert not {problem.worked for problem in train} & {problem.worked for problem in test}


def test_the_drilled_facts_are_true():
    assert all(eval(left[:-1]) == int(result) for left, result in arithmetic_facts())


def test_the_warm_start_asks_for_nothing_but_answers_and_results(tokenizer):
    from grpo_math.data.prompts import TEMPLATES

    rows = WarmStart(tokenizer, TEMPLATES["boxed"], seed=0).rows(50, terse=0.5)
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"])
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    asked = [tokenizer.decode([label for label in row["labels"] if label != -100]) for row in rows]
    assert any(text.startswith("\\boxed{") for text in asked)
    assert all(text.endswith(("}<|end|>", "\n")) for text in asked)


def test_only_an_earlier_quickstart_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not an earlier quickstart"):
        make_room(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "policy").mkdir()
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="is not an earlier quickstart"):
        make_room(tmp_path)
    with pytest.raises(UserError, match="is not an earlier quickstart"):
        make_room(tmp_path / "thesis.tex")
    make_room(tmp_path / "new")
    (tmp_path / "new" / "old").touch()
    make_room(tmp_path / "new")
    assert not (tmp_path / "new" / "old").exists()


def test_its_recipe_uses_what_the_folder_has_and_is_checked_first(tmp_path):
    with pytest.raises(UserError, match="learning_rat: unknown key"):
        prepare(tmp_path, learning_rat=1)
    assert not (tmp_path / "policy").exists()
    (tmp_path / "policy").mkdir()
    recipe = prepare(tmp_path, seed=3, max_steps=2)
    assert recipe.output_dir == tmp_path
    assert (recipe.trainer["seed"], recipe.trainer["max_steps"]) == (3, 2)
    assert recipe.datasets[0].path == str(tmp_path / "arithmetic")


@pytest.fixture(scope="module")
def accuracies():
    """Of the four seeds, on average at least 0.95."""
    found: list[float] = []
    yield found
    assert len(found) < 4 or fmean(found) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))  # test_wheel.py runs seed 0
def test_grpo_teaches_the_tiny_policy(seed, tmp_path, accuracies):
    """To 0.95, as far as 200 problems can tell, and on average. Each CPU rounds in its own way, and so has other
    completions: seed 2 was at 0.95 or more on one and at 0.935 (0.892-0.962) on another one."""
    words = ["quickstart", "--seed", str(seed), "--output_dir", str(tmp_path / "q")]
    done = subprocess.run([sys.executable, "-m", "grpo_math", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "q" / "results.json").read_text())
    print(seed, results["before"]["accuracy"], results["after"]["accuracy"], results["seconds"])
    assert results["before"]["accuracy"] <= 0.3
    assert results["after"]["accuracy_high"] >= 0.95
    accuracies.append(results["after"]["accuracy"])
    assert results["seconds"].keys() == {"warm_start", "train", "evaluate", "total"}
