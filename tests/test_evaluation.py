"""Figures from graded rows."""

import pytest

from grpo_math.data import TEMPLATES, Problem
from grpo_math.errors import UserError
from grpo_math.evaluation import Benchmark, grade_rows, load_benchmarks
from grpo_math.evaluation.solve import rows_of
from grpo_math.evaluation.statistics import wilson_interval
from grpo_math.evaluation.summary import majorities, summarise
from grpo_math.generation import Completion
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_table, write_table


def row(problem: int, correct, answer="7", sample: int = 0, **changes) -> dict:
    return {
        "dataset": "d", "problem": problem, "sample": sample, "question": "q", "gold": "3", "completion": "c", "answer": answer,
        "correct": correct, "how": "number", "well_formed": True, "length": 10, "truncated": False, **changes,
    }  # fmt: skip


def test_one_sample_a_problem_has_wilsons_intervals_and_an_unreadable_gold_is_wrong():
    found = summarise([row(0, True), row(1, None, length=20, well_formed=False)], "d", step=7, seconds=1.234)
    flat = found.flat()
    assert (flat["accuracy"], flat["format_accuracy"], flat["problems"], flat["step"], flat["seconds"]) == (
        0.5,
        0.5,
        2,
        7,
        1.23,
    )
    assert (flat["accuracy_low"], flat["accuracy_high"]) == pytest.approx((0.0945, 0.9055), abs=1e-3)
    assert (flat["length"], flat["length_low"]) == (15, 0)
    assert flat["length_high"] == pytest.approx(44.05, abs=0.01)  # tests/test_figures.py computes it
    assert "groups" not in flat


def test_samples_give_mean_pass_and_majority():
    # problem 0: right 3 of 4; problem 1: right 1 of 4 and the wrong ones agree, written differently
    rows = [row(0, True, "3", 0), row(0, True, "3.0", 1), row(0, False, "4", 2), row(0, True, "3", 3)]
    rows += [row(1, False, "0.5", 0), row(1, True, "3", 1), row(1, False, "1/2", 2), row(1, False, r"\frac12", 3)]
    figures = summarise(rows, "d").figures
    assert figures["accuracy"].value == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert figures["pass@1"].value == figures["accuracy"].value
    assert figures["pass@2"].value == pytest.approx((1 + 1 / 2) / 2)
    assert figures["pass@4"].value == 1
    assert figures["maj@4"].value == 0.5
    assert (figures["pass@4"].low, figures["pass@4"].high) == wilson_interval(2, 2)
    assert figures["accuracy"].low < figures["accuracy"].value < figures["accuracy"].high


@pytest.mark.parametrize(
    ("answers", "right", "vote"),
    [
        ([("1", False), ("3", True)], "a tie goes to the first", 0),
        ([("3", True), ("1", False)], "a tie goes to the first", 1),
        ([(None, False), (None, False), ("3", True)], "no answer, no vote", 1),
        ([(None, False), (None, False)], "nobody votes", 0),
        ([("1", False), ("2", False), ("4", False), ("3", True), ("3.0", True)], "two of five", 1),
        ([("3", True), ("x+1", False), ("1+x", False), ("(x)+1", False), ("3", True)], "three ways to write one", 0),
        ([(r"\frac{", False), (r"\frac{", False), ("3", True)], "unreadable, but the same text", 0),
    ],
)
def test_the_majority_is_found_by_the_grader(answers, right, vote):
    question = [row(0, correct, answer, sample) for sample, (answer, correct) in enumerate(answers)]
    assert majorities([question]) == [vote], right


def test_accuracy_by_level_and_subject():
    rows = [row(i, i % 2 == 0, level=1 + i // 4, subject="Algebra") for i in range(8)]
    groups = summarise(rows, "d").groups
    assert {level: (count, figure.value) for level, (count, figure) in groups["level"].items()} == {
        "1": (4, 0.5),
        "2": (4, 0.5),
    }
    assert groups["subject"]["Algebra"][0] == 8
    assert summarise(rows, "d").flat()["groups"]["level"]["2"]["problems"] == 4


def test_a_small_row_of_a_breakdown_is_not_certain():
    rows = [row(i, sample == 0, sample=sample, level=i // 3) for i in range(6) for sample in range(4)]
    figure = summarise(rows, "d").groups["level"]["1"][1]
    assert figure.value == 0.25
    assert (figure.low, figure.high) == pytest.approx((0.060, 0.637), abs=1e-3)


def test_levels_of_several_types_are_text_in_the_table_of_completions(tmp_path):
    levels = [1, "hard", {"a": 1}, 10**30, b"x", None]
    benchmark = Benchmark("d", [Problem("q", '["1", "one"]', meta={"level": level}) for level in levels])
    rows = [
        row for place in range(len(levels)) for row in rows_of(benchmark, place, [Completion("\\boxed{one}", 1, False)])
    ]
    rows = grade_rows(rows, TEMPLATES["boxed"])
    write_table(rows, tmp_path / "eval.parquet")
    found = read_table(tmp_path / "eval.parquet")
    assert [row["level"] for row in found] == ["1", "hard", "{'a': 1}", str(10**30), "b'x'", None]
    assert {(row["gold"], row["correct"]) for row in found} == {('["1", "one"]', True)}
    assert summarise(rows, "d").groups["level"]["hard"][0] == 1


def test_rows_are_graded_with_the_prefill(write_recipe):
    template = {"user": "{question}", "prefill": r"\boxed{", "chat": False}
    recipe = load_recipe(["--config", str(write_recipe(prompt_template=template))])
    (one,) = grade_rows([{"completion": "3}", "gold": "3"}], recipe.template)
    assert (one["answer"], one["correct"], one["well_formed"]) == ("3", True, True)


def test_datasets_of_one_name_keep_apart(write_recipe, problem_folder, tmp_path):
    files = [str(problem_folder / f"{name}.jsonl") for name in ("test", "train")]
    datasets = [{"name": "gsm8k", "path": path, "max_samples": 2} for path in files]
    recipe = load_recipe(["--config", str(write_recipe(dataset={"name": "svamp"}, eval={"datasets": datasets}))])
    assert [one.title for one in load_benchmarks(recipe.eval_datasets)] == ["gsm8k test", f"gsm8k test {files[1]}"]


def test_a_mistake_in_the_held_out_problems_names_their_key_and_leaves_file_names_alone(write_recipe, tmp_path):
    broken = tmp_path / "my.dataset.jsonl"
    for line, message in (
        ("{", f"{broken}, line 1: not JSON"),
        ('{"q": 1}', "eval.datasets.fields: no column"),
    ):
        broken.write_text(line + "\n")
        recipe = load_recipe(["--config", str(write_recipe(eval={"datasets": {"name": "json", "path": str(broken)}}))])
        with pytest.raises(UserError) as caught:
            load_benchmarks(recipe.eval_datasets)
        assert message in str(caught.value)
