"""Pass rates: counted, kept, resumed, and what the filter makes of them."""

import json

import pytest
from pyarrow import parquet

from grpo_math.data.pass_rates import rate_filter
from grpo_math.data.problems import PassRateSpec, Problem
from grpo_math.errors import UserError
from grpo_math.evaluation.pass_rate import main, rate_of, show, write
from grpo_math.recipe.recipe import load_recipe
from grpo_math.trainer.training import load_parts

PROBLEMS = [Problem(f"What is {n}+1?", str(n + 1)) for n in range(5)]


@pytest.fixture
def rates(tmp_path):
    """A file in which problem n of the first four is right n of 4 times."""
    write([rate_of(problem, right, 4) for right, problem in enumerate(PROBLEMS[:4])], tmp_path / "rates.parquet")
    return str(tmp_path / "rates.parquet")


def test_the_filter_keeps_what_lies_between_and_says_why_not(rates):
    keep = rate_filter(PassRateSpec(rates, 0.2, 0.5))
    below, above = "with a pass rate below 0.2", "with a pass rate above 0.5"
    assert [keep(problem) for problem in PROBLEMS] == [below, None, None, above, f"without a pass rate in {rates}"]
    assert keep(Problem("What is 1+1?", "3")) == f"without a pass rate in {rates}"  # another answer is another problem
    assert rate_filter(None)(PROBLEMS[0]) is None


def test_a_file_that_holds_no_pass_rates_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match=r"dataset.pass_rate.file: .*make it with grpo-math pass-rate"):
        rate_filter(PassRateSpec(f"{tmp_path}/x.parquet"))


def test_the_distribution_counts_every_problem_once(rates, capsys):
    show(parquet.read_table(rates).to_pylist(), 4, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:7]] == [["0", "1"], ["1", "1"], ["2", "1"], ["3", "1"], ["4", "0"]]
    # two of four: 0 of 6 pairs are mixed where none is right, 3 of 6, 4 of 6, and 3 of 6
    assert lines[7:] == ["mean 0.375", "42% of the groups of 2 have completions right and wrong"]
    show([rate_of(PROBLEMS[0], right, 64) for right in range(65)], 64, 8)
    lines = capsys.readouterr().out.splitlines()
    assert sum(int(line.split()[1]) for line in lines[2:-2]) == 65


def test_pass_rates_of_a_model_are_measured_resumed_and_filter_the_training(write_recipe, tmp_path, capsys):
    path, out = str(write_recipe(use_vllm=False)), tmp_path / "rates.parquet"
    main(["--config", path, "--out", str(out), "--samples", "4"])
    assert "training: 16 problems" in capsys.readouterr().out
    first = parquet.read_table(out).to_pylist()
    assert len(first) == 16
    assert {row["samples"] for row in first} == {4}
    assert out.with_suffix(".png").stat().st_size > 1_000
    rows = (tmp_path / "rates" / "completions.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 64
    assert {json.loads(row)["sample"] for row in rows} == {0, 1, 2, 3}
    (tmp_path / "rates" / "completions.jsonl").write_text("".join(rows[:22]))  # as a killed run leaves it
    main(["--config", path, "--out", str(out), "--samples", "4"])
    assert "going on with 5 problems" in capsys.readouterr().out
    assert parquet.read_table(out).to_pylist() == first
    keys = {"name": "gsm8k", "path": load_recipe(["--config", path]).datasets[0].path}
    spec = {"file": str(out), "max": 0.0}
    recipe = load_recipe(["--config", str(write_recipe(dataset={**keys, "pass_rate": spec}))])
    never = [row["question"] for row in first if row["pass_rate"] == 0]
    assert [problem.question for problem in load_parts(recipe, None)[0].problems] == never


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--out: want a file to write the pass rates to, such as rates.parquet"),
        (["--out", "rates.csv"], "--out: want a file to write the pass rates to, such as rates.parquet"),
        (["--out", "r.parquet", "--samples", "0"], "--samples: want a whole number above 0, got '0'"),
        (["--out", "r.parquet"], "no recipe: give one with --config recipes/X.yaml"),
    ],
)
def test_a_mistake_is_one_line(words, says):
    with pytest.raises(UserError) as mistake:
        main(words)
    assert str(mistake.value) == says
