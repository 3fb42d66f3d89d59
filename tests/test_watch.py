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
from conftest import ROOT, wait_for

from grpo_math.errors import UserError
from grpo_math.evaluation.watch import chosen, log_to_wandb, newest
from grpo_math.runs.checkpoints import complete_checkpoints, set_aside
from grpo_math.runs.folder import (
    append_rows,
    forget_after,
    name_wandb_run,
    only_one,
    read_rows,
    wandb_identity,
)

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
    assert newest(tmp_path)[:2] == (1, tmp_path / "checkpoint-1")
    writing = threading.Thread(target=write_checkpoint, args=(tmp_path, policy_folder, 2, 0.1))
    writing.start()
    state, seen = tmp_path / "checkpoint-2" / "trainer_state.json", set()
    while writing.is_alive():
        found = newest(tmp_path)[0]
        seen.add(found)
        assert found == 1 or state.read_text().endswith("}")
        time.sleep(0.02)
    assert seen == {1, 2}


def test_the_newest_comes_first_and_a_finished_run_counts_without_checkpoints(tmp_path, policy_folder):
    assert newest(tmp_path) is None
    for step in (5, 20, 100):
        write_checkpoint(tmp_path, policy_folder, step)
    assert newest(tmp_path)[0] == 100
    (tmp_path / "results.json").write_text('{"steps": 103}')
    shutil.copytree(policy_folder, tmp_path / "final")
    assert newest(tmp_path)[:2] == (103, tmp_path / "final")


def test_what_a_run_from_an_earlier_checkpoint_makes_again_is_set_aside(tmp_path, policy_folder):
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, policy_folder, step)
    set_aside(tmp_path, 4)
    assert set(complete_checkpoints(tmp_path)) == {2, 4}
    assert (tmp_path / "abandoned-checkpoint-6" / "model.safetensors").exists()


def test_rows_survive_half_lines_and_strange_line_ends(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_rows([{"step": 1, "text": "one\u2028two\x85three"}], file)
    with file.open("a") as half:
        half.write('{"step": 2, "te')
    append_rows([{"step": 3, "text": "a"}], file)
    assert [row["step"] for row in read_rows(file)] == [1, 3]
    assert read_rows(file)[0]["text"] == "one\u2028two\x85three"
    assert [row["step"] for row in forget_after(1, file)] == [1] == [row["step"] for row in read_rows(file)]


def test_two_at_work_in_one_folder_are_one_too_many(tmp_path):
    again = only_one(tmp_path, "--watch")
    with only_one(tmp_path, "--watch"), pytest.raises(UserError, match="--watch: another process is using"), again:
        pass
    with only_one(tmp_path, "--watch"):
        pass


def test_evaluations_from_beside_go_to_the_same_wandb_run(tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # of a training that another test has run in this process
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    name_wandb_run(tmp_path)
    identity = wandb_identity(tmp_path)["id"]
    logged = []
    monkeypatch.setattr(wandb.Run, "log", lambda self, row, *_, **__: logged.append((self.id, row)))
    log_to_wandb(tmp_path, 7, {"eval/accuracy": 0.5, "eval/accuracy_low": 0.25})
    wanted = {"eval/accuracy": 0.5, "eval/accuracy_low": 0.25, "train/global_step": 7}
    assert logged == [(identity, wanted)]
    name_wandb_run(tmp_path)  # the resumed training
    assert wandb_identity(tmp_path)["id"] == identity
    (tmp_path / "other").mkdir()
    name_wandb_run(tmp_path / "other")  # another training in this process is another run
    assert wandb_identity(tmp_path / "other")["id"] != identity
    log_to_wandb(tmp_path / "elsewhere", 7, {})  # no W&B, nothing to do
    wandb.teardown()


@pytest.mark.parametrize(
    ("visible", "device", "gpu"),
    [("4,6", "1", "6"), ("4,6", "0", "4"), ("GPU-a,GPU-c", "1", "GPU-c"), ("GPU-a,GPU-c", "GPU-c", "GPU-c"), ("4", "4", None),
     ("4,6", "2", None), ("4,6", "GPU-a", None), ("", "0", None), ("4,6", "0,1", None), ("4,6", "-1", None)],
)  # fmt: skip
def test_device_counts_the_visible_gpus(nvidia_smi, monkeypatch, visible, device, gpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if gpu:
        assert chosen(device) == gpu
        return
    count = len([name for name in visible.split(",") if name])
    with pytest.raises(UserError, match=f"^--device: no GPU {device}: visible are {count}, numbered from 0"):
        chosen(device)


@pytest.fixture
def recipe(write_recipe, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    changes = {"rewards": {"slow": {"path": f"{tmp_path}/slow.py:slow"}}, "use_vllm": False, "prompts_per_step": 2}
    return write_recipe(
        preflight=False,
        eval=EVAL,
        save_steps=2,
        save_total_limit=2,
        max_steps=1000,
        per_device_train_batch_size=None,
        **changes,
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
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return start


def evaluated(run) -> list[tuple[int, str]]:
    return [(row["step"], row["weights"]) for row in read_rows(run / "eval.jsonl") if "weights" in row]


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
    last = max(complete_checkpoints(run)) + 10
    trainer = start("train", "--config", str(recipe), "--resume_from_checkpoint", "auto", "--max_steps", str(last))
    watcher = start("evaluate", "--watch", str(run))
    trained = trainer.communicate(timeout=120)[0]
    assert trainer.returncode == 0, trained
    said = watcher.communicate(timeout=120)[0]
    assert watcher.returncode == 0, said
    assert f"{run} is finished" in said
    steps = [step for step, _ in evaluated(run)]
    assert steps[: len(known)] == [step for step, _ in known]
    assert steps[-1] == last
    assert len(set(steps)) == len(steps)
    assert len(steps) < last / 2  # some of the checkpoints were passed over


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() < 2, reason="two processes at a time need two cores")
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
    assert "the evaluation process was killed: restarting it" in said
    assert evaluated(run)[-1][0] == 30
    assert not any(one.is_running() and one.status() != "zombie" for one in everyone)
