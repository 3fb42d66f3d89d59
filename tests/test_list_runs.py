"""`grpo-math runs`, over made-up runs in every state."""

import fcntl
import os
import time

import pytest
from make_run import make_run, make_sft_run, write_json, write_rows

from grpo_math.__main__ import dispatch
from grpo_math.errors import run_cli


@pytest.fixture
def runs(monkeypatch, capsys, tmp_path):
    """The exit status, the output and the errors of the command in this folder."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    yield lambda *words: (run_cli(dispatch, ["runs", *words]), *capsys.readouterr())
    monkeypatch.undo()
    time.tzset()


def started(run, day: int):
    write_json(run / "environment.json", {"started": f"2026-11-{day:02d}T10:00:00+00:00"})
    return run


def test_a_line_a_run_with_state_and_headline_newest_last(runs, tmp_path):
    folder = tmp_path / "runs"
    started(make_run(folder / "done"), 20)
    live = started(make_run(folder / "live", steps=12, finished=False), 22)
    started(make_run(folder / "killed", steps=12, finished=False, max_steps=None), 19)
    broken = started(make_run(folder / "broken", steps=5, finished=False), 18)
    trace = "Traceback (most recent call last):\n  ...\ngrpo_math.errors.UserError: rewards.format: raised ValueError"
    (broken / "training.log").write_text(f"2026-11-18 10:00:01,000 DEBUG grpo_math: stopped by a mistake\n{trace}\n")
    ended = started(make_run(folder / "ended", steps=5, finished=False), 17)
    write_rows(ended / "alarms.jsonl", [{"step": 5, "alarm": "nan", "says": "loss is nan"}])
    started(make_sft_run(folder / "sft"), 16)
    started(make_run(folder / "sweep" / "beta=0" / "seed-1", steps=3), 14)
    started(make_run(folder / "odd", steps=2), 15)
    (folder / "odd" / "recipe.yaml").write_text("- no recipe")
    (folder / "no-run").mkdir()
    held = os.open(live, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    status, output, _ = runs()
    os.close(held)
    assert status == 0
    head, *lines = [line.split("  ") for line in output.strip().splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [cell.strip() for cell in head if cell.strip()] == ["run", "state", "steps", "accuracy", "reward", "started"]
    assert [line[:3] for line in lines] == [
        ["sweep/beta=0/seed-1", "finished", "3/3"],
        ["odd", "cannot be read: see grpo-math report", "2026-11-15 10:00"],
        ["sft", "finished", "30/30"],
        ["ended", "ended by alarm nan", "5/40"],
        ["broken", "failed", "5/40"],
        ["killed", "stopped", "12"],
        ["done", "finished", "40/40"],
        ["live", "running", "12/40"],
    ]
    assert lines[-2][3].count("→") == 1
    assert lines[-1][3].count("→") == 0  # one evaluation so far


def test_the_reason_of_a_failure_is_in_the_summary(tmp_path):
    run = make_run(tmp_path / "run", steps=5, finished=False)
    failed = (
        "2026-11-18 10:00:01,000 DEBUG grpo_math: stopped by a mistake\nTraceback\ngrpo_math.errors.UserError: lr: bad"
    )
    (run / "training.log").write_text(failed + "\n")
    from grpo_math.report.data import read_run
    from grpo_math.report.summary import state

    assert state(read_run(run)) == "failed, step 5 of 40 (lr: bad)"
    (run / "training.log").write_text(f"{failed}\n2026-11-18 10:05:00,000 INFO grpo_math: step 6/40\n")
    assert state(read_run(run)) == "stopped, step 5 of 40"


def test_a_hint_where_there_are_none_and_a_line_for_a_mistake(runs):
    assert runs() == (0, "no runs in runs: grpo-math train creates one in the recipe's output_dir\n", "")
    assert runs("elsewhere") == (2, "", "error: elsewhere: no such folder: name one with runs in it\n")
    assert runs("a", "b")[2] == "error: grpo-math runs: b: unknown argument\n"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("results.json", '{"steps": 4', "steps is no number"),
        ("results.json", "null", "steps is no number"),
        ("results.json", '{"steps": null}', "steps is no number"),
        ("results.json", '{"steps": 3, "seconds": null}', "seconds.total is no number"),
        ("results.json", '{"steps": 3, "seconds": {"total": null}}', "seconds.total is no number"),
    ],
)
def test_a_damaged_file_is_one_line(runs, tmp_path, capsys, name, text, why):
    run = make_run(tmp_path / "runs" / "one", steps=3)
    (run / name).write_text(text)
    assert run_cli(dispatch, ["report", "runs/one"]) == 2
    assert capsys.readouterr().err == f"error: runs/one/{name}: damaged, {why}: restore it from a copy, or delete it\n"
    status, output, _ = runs()
    assert status == 0
    assert "cannot be read: see grpo-math report" in output


def test_a_damaged_evaluation_does_not_count(runs, tmp_path):
    run = make_run(tmp_path / "runs" / "one", steps=3)
    (run / "eval.jsonl").write_text(
        '{"step": 0, "samples": "many", "accuracy": 1, "accuracy_low": 1, "accuracy_high": 1}\n'
    )
    assert run_cli(dispatch, ["report", "runs/one"]) == 0
    assert runs()[0] == 0
