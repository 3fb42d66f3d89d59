"""benchmarks/gpu.sh without a GPU: what it would run, what it misses, parts that fail, last too long or are killed."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON = """#!/bin/bash
case "$*" in
    *torch.cuda*) exit 0 ;;
    *vllm*is?None*) exit 1 ;;
    -c*|-|scripts/missing.py) exec REAL "$@" ;;
esac
echo "$*" >> "$OUT/calls"
case "$*" in
    *async_rewards.py) until [ -e "$OUT/go" ]; do sleep 0.1; done; echo done ;;
    *rewards.py) printf '| reward |\\n|---|\\nin between\\n| random |\\n\\n| another |\\n|---|\\n| row |\\n' ;;
    *"grpo_math sft"*) [ "$(grep -c ' sft ' "$OUT/calls")" = 1 ] || { mkdir "$OUT/sft"; touch "$OUT/sft/results.json"; } ;;
    *"grpo_math evaluate"*) echo 'accuracy 0.5' ;;
    *) echo 'no such luck' >&2; exit 3 ;;
esac
"""


@pytest.fixture
def gpu_sh(problem_folder, tmp_path):
    """Calls the script; with a Python that stands in for one with all requirements, where none is given."""
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("REAL", sys.executable))
    python.chmod(0o755)

    model_folder = tmp_path / "model"
    model_folder.mkdir()
    (model_folder / "config.json").touch()

    def run(*words, model=model_folder, **environment):
        given = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "DEVICE": "cpu"} | environment
        command = [SCRIPT, model, problem_folder.parent, *words]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)

    yield run
    for file in (tmp_path / "out" / "state").glob("*.pid"):
        subprocess.run(["pkill", "-KILL", "-s", file.read_text().strip()])


@pytest.fixture
def row(tmp_path):
    """The result of a part in the table."""
    return lambda name: re.search(rf"(?m)^\| {name} \| (.*?) \| ", (tmp_path / "out" / "gpu.md").read_text())[1]


def test_a_dry_run_prints_a_command_per_part(gpu_sh, tmp_path):
    done = gpu_sh("--dry-run", DEVICE="cuda")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("timeout ") for line in lines)
    (train, control) = [line for line in lines if "grpo_math train" in line]
    assert "--config recipes/smollm2_gsm8k.yaml" in train
    assert "--resume_from_checkpoint auto" in train
    assert "--rewards.random.chance 0.5" in control
    assert not (tmp_path / "out").exists()
    files = re.findall(r"(?:benchmarks|recipes)/\S+", done.stdout)
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert {"benchmarks/overhead.py", "benchmarks/step_time.py", "benchmarks/memory.py"} <= set(files)


def test_everything_that_is_missing_is_one_line(gpu_sh, tmp_path):
    venv.create(tmp_path / "bare")
    done = gpu_sh(model="/nowhere", PARTS="memory speed", PYTHON=str(tmp_path / "bare/bin/python"), LIMIT="soon")
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing: /nowhere/config.json, a LIMIT of more than 10 seconds, accelerate>=")
    for name in ("datasets", "math-verify", "torch", "trl"):
        assert f", {name}>=" in done.stderr
    assert done.stderr.endswith("compare_control)\n")
    assert ", a part called speed (of: before " in done.stderr
    assert done.stderr.count("\n") == 1
    done = gpu_sh(PYTHON="/nowhere/python")
    assert done.stderr == "error: missing: a Python at PYTHON=/nowhere/python\n"


def test_a_part_that_fails_says_so_and_the_others_run(gpu_sh, tmp_path, row):
    done = gpu_sh(PARTS="grading rewards")
    assert done.returncode == 1
    assert row("grading").startswith("failed, exit status 3: no such luck")
    assert row("rewards") == "ok"
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "\n## rewards\n\n| reward |\n|---|\n| random |\n\n| another |\n|---|\n| row |\n" in page
    assert gpu_sh(PARTS="grading rewards").returncode == 1
    calls = (tmp_path / "out" / "calls").read_text().splitlines()  # the part that is done was not repeated
    assert [Path(call.split()[0]).stem for call in calls] == ["rewards", "grading", "grading"]


def test_a_part_goes_on_between_calls_and_is_started_again_if_it_was_killed(gpu_sh, tmp_path, row):
    out = tmp_path / "out"
    for _ in range(2):
        assert gpu_sh(PARTS="async_rewards", LIMIT="11").returncode == 3
        assert row("async_rewards") == "running"
    assert len((out / "calls").read_text().splitlines()) == 1
    subprocess.run(["pkill", "-KILL", "-s", (out / "state/async_rewards.pid").read_text().strip()], check=True)
    wait_for(lambda: subprocess.run(["flock", "-n", out / "state/async_rewards.lock", "true"]).returncode == 0)
    (out / "go").touch()
    assert gpu_sh(PARTS="async_rewards").returncode == 0
    assert row("async_rewards") == "ok, started 2 times"
    (out / "machine").write_text("another")
    assert "was begun elsewhere" in gpu_sh(PARTS="rewards").stderr


def test_a_training_without_results_was_only_told_to_stop(gpu_sh, row):
    assert gpu_sh(PARTS="sft grpo control").returncode == 1
    assert row("sft") == "ok, started 2 times"
    assert row("grpo").startswith("failed, exit status 3: no such luck")


def test_what_cannot_run_here_says_why(gpu_sh, nvidia_smi, row):
    assert gpu_sh(PARTS="before generation grpo", DEVICE="cuda").returncode == 0
    assert row("before") == "ok, without vLLM: not installed"
    assert row("generation") == "not run: without vLLM: not installed"
    assert row("grpo") == "not run: sft is not finished, without vLLM: not installed"
