"""`grpo-math report --check`: what a recipe's header claims, as bounds that a finished run is compared with."""

import pytest
from conftest import ROOT
from make_run import ENVIRONMENT, make_run, write_json

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError, run_cli
from grpo_math.evaluation.statistics import Figure
from grpo_math.report.data import read_run
from grpo_math.report.expected import check, figures, holds, read_expected, recipe_name

PUBLISHED = sorted(path.parent for path in (ROOT / "docs/results").glob("*/results.json"))


def test_the_recipes_whose_headers_name_a_figure_are_those_with_bounds():
    texts = {path.stem: path.read_text() for path in (ROOT / "recipes").glob("*.yaml")}
    assert {*read_expected()} == {name for name, text in texts.items() if "not measured yet" not in text}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_run_holds_the_bounds_of_its_recipe(folder):
    run, known = read_run(folder), read_expected()
    if recipe_name(run) in known:
        assert check([folder])
        assert run.hardware == known[recipe_name(run)].hardware


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """The exit status, the output and the errors of the command, in a folder with made-up runs."""
    monkeypatch.chdir(tmp_path)
    for name, command, finished in (
        ("done", "quickstart", True),
        ("killed", "train --config quickstart", False),
        ("other", "train --config mine.yaml", True),
    ):
        run = make_run(tmp_path / name, steps=4, finished=finished)
        write_json(run / "environment.json", ENVIRONMENT | {"command": ["grpo-math", *command.split()]})
    return lambda *words: (run_cli(dispatch, ["report", "--check", *words]), *capsys.readouterr())


def test_a_bound_that_fails_is_exit_status_1(checked):
    with pytest.raises(SystemExit) as ended:
        checked("done", str(ROOT / "docs/results/quickstart"))
    assert ended.value.code == 1


def test_each_metric_has_its_line(checked, capsys):
    with pytest.raises(SystemExit):
        checked("done")
    first, own, *table = filter(None, capsys.readouterr().out.splitlines())
    gpus = "2 x NVIDIA H100 80GB HBM3"
    assert first == f"done: recipe quickstart, finished, 4 steps, on {gpus}; the bounds are those of 2 CPUs"
    assert own.startswith("not as in the recipe: ")
    assert "max_steps 40" in own
    assert [line.split()[0] for line in table] == ["metric", "before.accuracy", "after.accuracy", "seconds.total"]
    assert [line.split()[-1] for line in table[1:]] == ["ok", "FAILED", "FAILED"]
    assert ["at least 0.95" in line for line in table] == [False, False, True, False]


def test_what_cannot_be_checked_is_a_line_each_and_exit_status_2(checked):
    status, output, errors = checked("killed", "done", "other")
    assert (status, output) == (2, "")
    assert errors == (
        "error: killed: stopped, step 4 of 40: only a finished run can be checked: grpo-math train --config quickstart "
        "--resume_from_checkpoint auto\n"
        "error: other: benchmarks/expected.yaml has nothing for its recipe, mine: it has quickstart, gsm8k_smollm2_135m, "
        "smollm2_svamp_sft, smollm2_svamp, smollm2_svamp_random, smollm2_svamp_shuffled\n"
    )
    assert checked("nowhere", "none")[2].count("no such folder") == 2
    assert checked("done", "--watch")[2] == "error: report: --check writes no page: leave out --out and --watch\n"


def test_mistakes_in_the_file_are_named_all_at_once(tmp_path):
    path = tmp_path / "expected.yaml"
    path.write_text(
        "a: {hardwear: x, metrics: {steps: {mn: 1}, loss: {max: low}}}\nb: {hardware: x, metrics: {s: {}}}\n"
    )
    with pytest.raises(UserError) as raised:
        read_expected(path)
    assert [line.removeprefix(f"{path}: ").split(": ")[0] for line in str(raised.value).splitlines()] == [
        "a.hardware", "a.metrics.steps.mn.[key]", "a.metrics.loss.max", "a.hardwear", "b.metrics.s",
    ]  # fmt: skip


def test_an_unknown_metric_names_the_nearest_one(tmp_path):
    (tmp_path / "expected.yaml").write_text(
        "quickstart: {hardware: x, metrics: {after.acuracy: {min: 1}, loss: {max: 1}}}"
    )
    known, run = read_expected(tmp_path / "expected.yaml"), read_run(ROOT / "docs/results/quickstart")
    with pytest.raises(
        UserError, match=r"has no after.acuracy \(did you mean after.accuracy\?\), loss, as benchmarks/exp"
    ):
        figures(known, run)


@pytest.mark.parametrize(
    ("bound", "interval", "ok"),
    [
        ({"min": 0.95}, (0.935, 0.892, 0.962), True),  # the quickstart on another CPU
        ({"min": 0.95}, (0.91, 0.87, 0.94), False),
        ({"max": 0.3}, (0.33, 0.27, 0.4), True),
        ({"max": 0.3}, (0.4, 0.33, 0.47), False),
        ({"min": 1, "max": 2}, (2, 2, 2), True),
        ({"min": 1, "max": 2}, (2.01, 2.01, 2.01), False),
    ],
)
def test_a_bound_fails_if_the_whole_interval_is_outside(bound, interval, ok):
    assert holds(bound, Figure(*interval)) is ok


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("grpo-math quickstart --seed 3", "quickstart"),
        ("python -m grpo_math launch --layout cpu --config recipes/dapo.yaml --seed 1", "dapo"),
        ("accelerate launch -m grpo_math.train --config=dapo", "dapo"),
        ("grpo-math train --config runs/quickstart/recipe.yaml", "quickstart"),
        ("grpo-math train --config recipe.yaml", "run"),
        ("python my_script.py", "run"),
        ("", "run"),
    ],
)
def test_the_recipe_is_that_of_the_command(tmp_path, command, name):
    run = make_run(tmp_path / "run", steps=1)
    write_json(run / "environment.json", {"command": command.split()})
    assert recipe_name(read_run(run)) == name
