"""A run that is killed, told to stop, or has no room left, and what is lost: real processes and real files."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, wait_for
from forked import Command, grpo_math
from safetensors.torch import save_file

from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.checkpoints import complete_checkpoints, fault_of, find_checkpoint, set_aside
from grpo_math.runs.folder import is_running, read_rows, read_table
from grpo_math.train import train

CLOCKS = ("step_time", "time/generate", "time/rewards", "time/train", "tokens_per_second", "seconds")
# Generation batches of two steps that are trained on twice, checkpoints wanted inside them, five epochs.
WORK = {
    "dataset": None,
    "rewards": {"length": {"path": str(ROOT / "tests" / "cpu_rewards.py:length")}},
    "learning_rate": 1e-2,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "beta": 0.1,
    "save_steps": 1,
    "save_total_limit": 3,
    "eval": {"every": 3, "before_after": True, "best": True},
    "completions": {"every": 1},
    "preflight": False,
}


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def same_states(one: Path, other: Path) -> bool:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        return equal(*(torch.load(file, weights_only=True) for file in (one, other)))


def equal(one, other) -> bool:
    """Bit by bit."""
    import numpy as np
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_as_if_it_had_not_been(write_recipe, tmp_path, problem_folder):
    work = WORK | {"dataset": {"name": "gsm8k", "path": str(problem_folder), "max_samples": 8}}
    recipe = write_recipe(max_steps=40, **work)
    command = [sys.executable, ROOT / "tests" / "killed.py", recipe, tmp_path, "20", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    reached = json.loads(done.stdout.splitlines()[-1])
    assert len(reached) == 20
    assert not any(step % 4 for step in reached), f"a checkpoint inside a generation batch: {reached}"
    for killed in tmp_path.glob("killed-*"):
        assert_same_run(tmp_path / "whole", killed)


def assert_same_run(whole: Path, killed: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in killed.iterdir())
    for name in ("metrics.jsonl", "eval.jsonl", "alarms.jsonl"):
        assert timeless(read_rows(whole / name)) == timeless(read_rows(killed / name))
    tables = sorted(path.name for path in (whole / "completions").iterdir())
    assert tables == sorted(path.name for path in (killed / "completions").iterdir())
    for name in tables:
        assert read_table(whole / "completions" / name) == read_table(killed / "completions" / name)
    for name in ("final", "best", "checkpoint-40"):
        assert (whole / name / "model.safetensors").read_bytes() == (killed / name / "model.safetensors").read_bytes()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert same_states(whole / "checkpoint-40" / name, killed / "checkpoint-40" / name)


def train_in_background(recipe: Path, folder: Path) -> Command:
    return Command(["train", "--config", str(recipe)], folder)


def wait_for_step(folder: Path, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not any(row["step"] >= step for row in read_rows(folder / "metrics.jsonl")):
        assert time.monotonic() < end, f"no step {step} in {seconds} s"
        time.sleep(0.05)


def test_a_signal_ends_the_step_saves_it_and_prints_the_command_that_goes_on(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=10_000, preflight=False)
    command = [sys.executable, "-m", "grpo_math.train", "--config", str(recipe)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(tmp_path / "run", 2)
    training.send_signal(signal.SIGTERM)
    said, _ = training.communicate(timeout=60)
    assert training.returncode == 0, said
    (last,) = complete_checkpoints(tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == list(range(1, last + 1))
    line = said.splitlines()[-1]
    command = f"python -m grpo_math.train --config {recipe} --resume_from_checkpoint auto"
    assert line == f"stopped after step {last}, which is saved. Continue with: {command}"
    words = shlex.split(line.partition("Continue with: python -m grpo_math.")[2])
    status, said = grpo_math([*words, "--max_steps", str(last + 1)], tmp_path)
    assert status == 0, said
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == last + 1


def test_two_trainings_do_not_share_a_folder(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=10_000, preflight=False, save_steps=1, save_total_limit=2)
    training = train_in_background(recipe, tmp_path)
    try:
        wait_for_step(tmp_path / "run", 2)
        assert is_running(tmp_path / "run")
        with pytest.raises(UserError, match=r"output_dir: a training is running in .*/run: wait for it"):
            train(load_recipe(["--config", str(recipe), "--resume_from_checkpoint", "auto"]))
    finally:
        os.kill(training.pid, signal.SIGKILL)
        training.wait()
    assert not is_running(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB; skips where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes more rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_line_with_the_last_good_checkpoint(write_recipe, small_disk):
    folder = small_disk / "run"
    recipe = write_recipe(max_steps=100, save_steps=2, output_dir=str(folder), preflight=False)
    with pytest.raises(UserError) as caught:
        train(load_recipe(["--config", str(recipe)]))
    good = max(complete_checkpoints(folder))
    assert str(caught.value).startswith(f"{folder}: cannot write the run (")
    assert str(caught.value).endswith(
        f"): fix that, then continue from {folder}/checkpoint-{good} with --resume_from_checkpoint auto"
    )
    for step in sorted(complete_checkpoints(folder))[:-1]:
        shutil.rmtree(folder / f"checkpoint-{step}")
    steps = str(good + 2)
    resumed = train(load_recipe(["--config", str(recipe), "--resume_from_checkpoint", "auto", "--max_steps", steps]))
    assert resumed["steps"] == good + 2
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(1, good + 3))


def test_a_disk_that_turns_read_only_is_one_line(write_recipe, small_disk, tmp_path):
    folder = small_disk / "run"
    recipe = write_recipe(max_steps=10_000, save_steps=10_000, output_dir=str(folder), preflight=False)
    training = train_in_background(recipe, tmp_path)
    wait_for_step(folder, 2)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    status, said = training.wait()
    subprocess.run(["umount", "-l", str(folder)], check=True)
    assert status == 2
    assert said.splitlines()[-1] == (
        f"error: {folder}: cannot write the run (Read-only file system): fix that, then start again, no checkpoint yet"
    )


def test_a_deleted_run_folder_is_one_line(write_recipe, tmp_path):
    folder = tmp_path / "run"
    training = train_in_background(write_recipe(max_steps=10_000, preflight=False), tmp_path)
    wait_for_step(folder, 2)
    while folder.exists():  # the training writes to it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
    status, said = training.wait()
    assert status == 2
    assert said.splitlines()[-1] == f"error: {folder} was deleted: there is nothing to resume from"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_left_out_and_said_so(write_recipe, tmp_path, capsys, name):
    recipe = write_recipe(max_steps=2, save_steps=1, preflight=False)
    train(load_recipe(["--config", str(recipe)]))
    damaged = tmp_path / "run" / "checkpoint-2" / name
    damaged.write_bytes(damaged.read_bytes()[:-100])
    resume = ["--config", str(recipe), "--max_steps", "3", "--resume_from_checkpoint"]
    with pytest.raises(UserError, match=f"{name} is damaged: name another checkpoint, or use auto"):
        train(load_recipe([*resume, str(tmp_path / "run" / "checkpoint-2")]))
    assert train(load_recipe([*resume, "auto"]))["steps"] == 3
    assert f"{damaged} is damaged: skipping its checkpoint" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model.safetensors"], "no weights"),
        (["optimizer.pt"], "no optimizer"),
        (["scheduler.pt"], "no scheduler"),
        (["rng_state.pth"], "no random state"),
        (["optimizer.pt", "scheduler.pt", "rng_state.pth"], "no optimizer and no scheduler and no random state"),
    ],
)
def test_a_part_of_a_checkpoint_that_is_missing_does_not_begin_anew(tmp_path, capsys, names, missing):
    """transformers resumes without them, with a new optimizer and without a word."""
    parts = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
    for step in (1, 2):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for part in set(parts) - set(names if step == 2 else []):
            save_file({}, checkpoint / part) if part.endswith("safetensors") else torch.save({}, checkpoint / part)
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(
        UserError, match=rf"checkpoint: .*/checkpoint-2 has {missing}: name another checkpoint, or use auto; "
    ):
        find_checkpoint(tmp_path, str(checkpoint), {})
    assert find_checkpoint(tmp_path, "auto", {}) == tmp_path / "checkpoint-1"
    assert capsys.readouterr().out == f"{checkpoint} has {missing}: skipping its checkpoint\n"


def test_an_abandoned_save_is_cleared_away_and_a_replaced_best_comes_back(tmp_path):
    for name in ("checkpoint-7", ".unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / ".unfinished" / "checkpoint-7").touch()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text('{"global_step": 7}')
    assert complete_checkpoints(tmp_path) == {}
    (tmp_path / ".unfinished" / "old-best").mkdir()
    set_aside(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_signal_between_two_logs_loses_no_metric(write_recipe, tmp_path):
    keys = {"logging_steps": 10_000, "save_only_model": True, "preflight": False}  # the last one is whole even so
    training = train_in_background(write_recipe(max_steps=10_000, **keys), tmp_path)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists)
    os.kill(training.pid, signal.SIGINT)
    status, said = training.wait()
    assert status == 0
    assert "stopping: the step is finished and saved first (a second signal stops at once)" in said
    ((last, checkpoint),) = complete_checkpoints(tmp_path / "run").items()
    assert fault_of(checkpoint) == ""
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [last]


def test_checkpoints_wait_for_the_end_of_a_generation_batch(write_recipe, tmp_path, capsys):
    keys = {"save_steps": 3, "preflight": False, "steps_per_generation": 2, "num_iterations": 2}
    train(load_recipe(["--config", str(write_recipe(max_steps=10, **keys))]))
    assert "checkpoints are saved at the end of a generation batch, every 4 steps" in capsys.readouterr().out
    assert set(complete_checkpoints(tmp_path / "run")) == {4, 8, 10}  # wanted at 3, 6 and 9, and the last step


@pytest.mark.parametrize(
    ("number", "batch", "step"),
    [(signal.SIGUSR1, 1, 0), (signal.SIGHUP, 4, 2), (signal.SIGUSR2, 7, 3)],
    ids=["before", "during", "after"],
)
def test_a_signal_ends_an_evaluation_after_its_batch(write_recipe, tmp_path, monkeypatch, capsys, number, batch, step):
    """Three batches each before the training, after its step 2, and after its last one."""
    from grpo_math.generation import TransformersEngine

    complete, batches = TransformersEngine.complete, []

    def told(*arguments):
        batches.append(1)
        if len(batches) == batch and resumed is None:
            signal.raise_signal(number)
        return complete(*arguments)

    monkeypatch.setattr(TransformersEngine, "complete", told)
    resumed, spec = None, {"every": 2, "before_after": True, "max_samples": 3, "batch_size": 1}
    recipe = write_recipe(max_steps=3, save_steps=3, preflight=False, eval=spec)
    assert train(load_recipe(["--config", str(recipe)])) == {}
    said = capsys.readouterr().out
    assert len(batches) == batch
    assert f"stopped after step {step}, which is saved. Continue with: " in said
    assert set(complete_checkpoints(tmp_path / "run")) == ({step} if step else set())
    assert [row["step"] for row in read_rows(tmp_path / "run" / "eval.jsonl")] == [0, 2][: batch // 3]
    resumed = train(load_recipe(["--config", str(recipe), "--resume_from_checkpoint", "auto"]))
    assert (resumed["steps"], resumed["after"]["problems"]) == (3, 3)


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    from grpo_math.trainer.checkpoints import StopOnSignal

    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert (stop.wanted, signal.getsignal(signal.SIGHUP)) == (False, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, earlier)
