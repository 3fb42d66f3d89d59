"""Continual evaluation: real processes beside each other, killed, and a checkpoint that is written slowly."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

from grpo_math.run_folder import append_rows, complete_checkpoints, read_rows
from grpo_math.watch import newest

SLOW = "import time\n\ndef slow(completions, **_):\n    time.sleep(0.4)\n    return [float(len(str(c)) % 7) for c in completions]\n"
EVAL = {"max_samples": 4, "max_completion_length": 4, "before_after": True}


def write_checkpoint(folder, policy_folder, step: int, pause: float = 0.0) -> None:
    """Its files one after the other, as transformers does, trainer_state.json last and in two pieces."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for file in policy_folder.iterdir():
        shutil.copy(file, checkpoint)
        time.sleep(pause)
    state = json.dumps({"global_step": step})
    with (checkpoint / "trainer_state.json").open("w") as file:
        for part in (state[:8], state[8:]):
            file.write(part)
            file.flush()
            time.sleep(5 * pause)


def test_a_checkpoint_that_is_being_written_is_left_alone(tmp_path, policy_folder):
    write_checkpoint(tmp_path, policy_folder, 1)
    (step, path, weights) = newest(tmp_path, set())
    assert (step, path) == (1, tmp_path / "checkpoint-1")
    append_rows([{"step": 1, "weights": weights}], tmp_path / "eval.jsonl")
    writing = threading.Thread(target=write_checkpoint, args=(tmp_path, policy_folder, 2, 0.1))
    writing.start()
    seen = set()
    while writing.is_alive():
        whole = (tmp_path / "checkpoint-2" / "trainer_state.json").exists() and '": 2}' in (
            tmp_path / "checkpoint-2" / "trainer_state.json"
        ).read_text()
        found = newest(tmp_path, set())
        seen.add(found is None)
        assert found is None or whole or found[0] == 2
        time.sleep(0.02)
    assert seen == {True, False}
    assert newest(tmp_path, set())[0] == 2


def test_the_newest_comes_first_once_and_a_finished_run_counts_without_checkpoints(tmp_path, policy_folder):
    for step in (5, 20, 100):
        write_checkpoint(tmp_path, policy_folder, step)
    assert set(complete_checkpoints(tmp_path)) == {5, 20, 100}
    step, _, weights = newest(tmp_path, set())
    assert step == 100
    append_rows([{"step": 100, "weights": weights}], tmp_path / "eval.jsonl")
    assert newest(tmp_path, set()) is None  # 5 and 20 are passed over
    append_rows([{"step": 100, "weights": "other"}], tmp_path / "eval.jsonl")
    assert newest(tmp_path, {(100, weights)}) is None
    (tmp_path / "results.json").write_text('{"steps": 103}')
    shutil.copytree(policy_folder, tmp_path / "final")
    assert newest(tmp_path, set())[:2] == (103, tmp_path / "final")


@pytest.fixture
def recipe(write_recipe, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    changes = {"rewards": {"slow": {"path": f"{tmp_path}/slow.py:slow"}}, "use_vllm": False, "prompts_per_step": 2}
    return write_recipe(
        eval=EVAL, save_steps=2, save_total_limit=2, max_steps=60, per_device_train_batch_size=None, **changes
    )


@pytest.fixture
def start(request):
    def start(*words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo_math", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        request.addfinalizer(process.kill)
        return process

    return start


def evaluated(run) -> list[tuple[int, str]]:
    return [(row["step"], row["weights"]) for row in read_rows(run / "eval.jsonl") if "weights" in row]


def wait_for(condition, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    front = psutil.Process(process.pid)
    return [front, *front.children(recursive=True)]


@pytest.mark.slow
def test_the_trainer_and_the_watcher_are_killed_and_started_again(recipe, start, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    trainer = start("train", "--config", str(recipe))
    watcher = start("evaluate", "--watch", str(run))
    wait_for(lambda: evaluated(run))
    trainer.kill()
    known = evaluated(run)
    wait_for(lambda: len(family(watcher)) > 2)  # it is at work on a later checkpoint, or was just
    everyone = family(watcher)
    watcher.kill()
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in everyone[1:]), 40)
    trainer = start("train", "--config", str(recipe), "--resume_from_checkpoint", "auto", "--max_steps", "40")
    watcher = start("evaluate", "--watch", str(run))
    trained = trainer.communicate(timeout=120)[0]
    assert trainer.returncode == 0, trained
    said = watcher.communicate(timeout=120)[0]
    assert watcher.returncode == 0, said
    assert f"{run} is finished" in said
    steps = [step for step, _ in evaluated(run)]
    assert steps[: len(known)] == [step for step, _ in known]
    assert steps[-1] == 40
    assert len(set(steps)) == len(steps)
    assert len(steps) < 20  # of the 20 checkpoints some were passed over


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() < 2, reason="two processes at a time want two cores")
def test_the_layout_starts_both_starts_a_killed_watcher_again_and_ends_both(recipe, start, tmp_path):
    run = tmp_path / "run"
    launcher = start("launch", "--layout", "dual_gpu_eval", "--config", str(recipe), "--max_steps", "30")
    watching = lambda: [one for one in family(launcher) if "--watch" in one.cmdline()]  # noqa: E731
    wait_for(lambda: len(watching()) == 2)  # front and supervisor
    min(watching(), key=lambda one: one.create_time()).kill()
    wait_for(lambda: evaluated(run))
    everyone = family(launcher)
    said = launcher.communicate(timeout=180)[0]
    assert launcher.returncode == 0, said
    assert "the evaluation beside the training was killed: starting it again" in said
    assert evaluated(run)[-1][0] == 30
    assert not any(one.is_running() and one.status() != "zombie" for one in everyone)
