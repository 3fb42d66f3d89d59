"""Which training problems are dropped: too long, too easy or too hard, or the same as a test problem."""

import json
import re
from contextlib import nullcontext

import pytest

from grpo_math.__main__ import dispatch
from grpo_math.data import prompts
from grpo_math.data.filters import first_reasons, outside_pass_rates, read_pass_rates, require_advantages, too_long
from grpo_math.data.loading import load_parts, load_problems
from grpo_math.data.problem import DatasetSpec, PassRateSpec, Problem
from grpo_math.data.prompts import PromptTemplate, prompt_lengths, token_ids
from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe


def test_long_prompts_are_dropped_with_a_reason(tokenizer):
    template = PromptTemplate()
    short, long = Problem("Ava has 3", "3"), Problem("Ava has 3 apples " * 20, "3")
    size = len(token_ids(template.prompt(short.question, tokenizer), tokenizer))
    assert too_long(template, tokenizer, size)([short, long]) == [None, f"over {size} prompt tokens"]
    assert too_long(template, tokenizer, size - 1)([short]) == [f"over {size - 1} prompt tokens"]
    assert too_long(template, tokenizer, 1)([]) == []


def test_lengths_are_counted_once(tokenizer, monkeypatch):
    counted, plain = [], prompts.prompt_ids
    monkeypatch.setattr(
        prompts, "prompt_ids", lambda some, *rest: counted.append([one.question for one in some]) or plain(some, *rest)
    )
    template = PromptTemplate(user="Count: {question}")  # of no other test
    problems = [Problem(question, "1") for question in ("Ava has 3", "Ava has 3 apples", "Ava has 3")]
    found = prompt_lengths(problems, template, tokenizer)
    assert found == [len(token_ids(template.prompt(one.question, tokenizer), tokenizer)) for one in problems]
    assert prompt_lengths(problems[::-1], template, tokenizer) == found[::-1]
    assert counted == [["Ava has 3", "Ava has 3 apples"], []]


def test_a_filter_sees_what_those_before_it_keep():
    seen = []

    def odd(problems):
        seen.extend(problem.answer for problem in problems)
        return ["odd" if int(problem.answer) % 2 else None for problem in problems]

    def small(problems):
        return ["small" if int(problem.answer) < 3 else None for problem in problems]

    problems = [Problem("q", str(number)) for number in range(6)]
    assert first_reasons(problems, [small, odd]) == ["small", "small", "small", "odd", None, "odd"]
    assert seen == ["3", "4", "5"]


def test_no_row_is_read_that_is_not_wanted(tmp_path):
    file = tmp_path / "mine.py"
    rows = "({'question': f'{n}', 'answer': f'{n}' if n < 5 else 1 / 0} for n in range(9))"
    file.write_text(f"def load(split):\n    yield from {rows}\n")
    spec = DatasetSpec(path=f"{file}:load", max_samples=2)
    loaded = load_problems(spec, lambda problems: [int(one.answer) % 2 and "odd" for one in problems])
    assert ([one.answer for one in loaded.problems], loaded.places, loaded.rows) == (["0", "2"], [1, 3], 3)
    assert loaded.dropped == {"odd": 1}


PROBLEMS = [Problem(f"What is {n}+1?", str(n + 1)) for n in range(5)]


def test_pass_rates_outside_the_range_are_dropped_with_a_reason(tmp_path):
    """Problem n of the first four is right n of 4 times."""
    rows = [
        {"question": problem.question, "gold": problem.answer, "correct": sample < right}
        for right, problem in enumerate(PROBLEMS[:4])
        for sample in range(4)
    ]
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    below, above = "with a pass rate below 0.2", "with a pass rate above 0.5"
    for given in (str(file), str(tmp_path)):
        keep = outside_pass_rates(PassRateSpec(file=given, min=0.2, max=0.5), read_pass_rates(given, "dataset."))
        assert keep(PROBLEMS) == [below, None, None, above, f"without a pass rate in {given}"]
        assert keep([Problem("What is 1+1?", "3")]) == [f"without a pass rate in {given}"]  # another gold


RATES = {(one.question, one.answer): rate for one, rate in zip(PROBLEMS, (0.0, 0.0, 0.5, 1.0, 0.25), strict=True)}
ENOUGH = "of 5 problems 2 are never right and 1 always: pass_rate: {min: 0.01, max: 0.99} keeps the 2 between"


@pytest.mark.parametrize(
    ("group", "require", "line"),
    [  # a half: 1 - 2 / 2**G; a quarter: 1 - (1 + 3**G) / 4**G
        (2, 0.175, None),  # (1/2 + 3/8) / 5
        (2, 0.18, f"0.17 of the groups (num_generations 2) have an advantage on average, expected at least 0.18: {ENOUGH}"),
        (4, 0.31, None),  # (7/8 + 87/128) / 5 = 0.3109
        (4, 0.32, f"0.31 of the groups (num_generations 4) have an advantage on average, expected at least 0.32: {ENOUGH}"),
        (2, 0.5, "0.17 of the groups (num_generations 2) have an advantage on average, expected at least 0.5: of 5 problems 2 are never right and 1 always: take easier or harder problems, or SFT first"),
        (None, 0.1, "SFT has no groups: leave it out"),
    ],
)  # fmt: skip
def test_too_few_groups_with_an_advantage_are_refused(group, require, line):
    spec = PassRateSpec(file="f", require=require)
    refused = pytest.raises(UserError, match=f"^{re.escape(f'dataset.pass_rate.require: {line}')}$")
    with refused if line else nullcontext():
        require_advantages(PROBLEMS, spec, RATES, group, "dataset.")


@pytest.mark.parametrize("content", [None, "no", "[]\n", '{"question": "q", "gold": "1"}\n'])
def test_a_file_without_pass_rates_is_one_line(tmp_path, content):
    if content:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"^dataset.pass_rate.file: .*x.jsonl.*create it with grpo-math evaluate"):
        read_pass_rates(f"{tmp_path}/x.jsonl", "dataset.")


def test_an_evaluation_of_the_training_problems_filters_them(write_recipe, tmp_path):
    path, out = str(write_recipe(use_vllm=False)), str(tmp_path / "rates")
    dispatch(["evaluate", "--config", path, "--split", "train", "--samples", "4", "--temperature", "1", "--out", out])
    rows = [json.loads(line) for line in (tmp_path / "rates" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 16 * 4
    rows[0]["correct"] = True  # a random model is hardly ever right
    (tmp_path / "rates" / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    solved = {row["question"] for row in rows if row["correct"]}
    dataset = {"name": "gsm8k", "path": load_recipe(["--config", path]).datasets[0].path}
    recipe = load_recipe(["--config", str(write_recipe(dataset={**dataset, "pass_rate": {"file": out, "max": 0.0}}))])
    (kept,) = load_parts(recipe.datasets, recipe.template, None)
    assert {problem.question for problem in kept.problems} == {row["question"] for row in rows} - solved
    assert 0 < len(kept.problems) < 16


def test_shuffled_answers_are_those_of_other_problems(tmp_path):
    rows = [{"question": f"q{n}", "answer": str(n), "worked": f"w{n}", "source": n} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec(name="json", path=str(tmp_path / "rows.jsonl"), shuffle_answers=True)
    (first,), (second,) = (load_parts([spec], PromptTemplate(), None) for _ in range(2))
    found = first.problems
    assert found == second.problems
    assert [(one.question, one.meta["source"]) for one in found] == [(f"q{n}", n) for n in range(100)]
    assert sorted(int(one.answer) for one in found) == list(range(100))
    assert all(one.worked == f"w{one.answer}" and one.question != f"q{one.answer}" for one in found)
    assert first.places == list(range(1, 101))
