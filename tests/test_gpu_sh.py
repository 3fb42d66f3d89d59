"""benchmarks/gpu.sh without a GPU: what it would run, what it misses, and a part that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
PYTHON = """#!/bin/bash
case "$1" in
    -*) exec {python} "$@" ;;
    *rewards.py) echo '| reward | seconds |'; echo 'in between'; echo '| other | table |' ;;
    *) echo 'no such luck' >&2; exit 3 ;;
esac
"""


@pytest.fixture
def gpu_sh(policy_folder, problem_folder, tmp_path):
    def run(*words, model=policy_folder, **environment):
        given = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "DEVICE": "cpu"} | environment
        command = [SCRIPT, model, problem_folder.parent, *words]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)

    return run


def test_a_dry_run_prints_a_command_a_part(gpu_sh, tmp_path):
    done = gpu_sh("--dry-run", DEVICE="cuda")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("timeout ") for line in lines)
    assert ["--bf16 true" in line and "--max_steps 200" in line for line in lines if "grpo_math train" in line] == [
        True
    ]
    assert not (tmp_path / "out").exists()
    scripts = [word for line in lines for word in line.split() if word.startswith("benchmarks/")]
    assert [script for script in scripts if not (SCRIPT.parents[1] / script).exists()] == []
    assert {"benchmarks/overhead.py", "benchmarks/step_time.py", "benchmarks/async_rewards.py"} <= set(scripts)


def test_what_is_missing_is_one_line(gpu_sh):
    done = gpu_sh(model="/nowhere", PARTS="memory speed")
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing: /nowhere/config.json, a part called speed (of: overhead ")
    assert done.stderr.count("\n") == 1


def test_a_part_that_fails_says_so_and_the_others_run(gpu_sh, tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    done = gpu_sh(PYTHON=str(python), PARTS="grading rewards")
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert done.returncode == 1
    assert "| grading | failed, exit status 3: no such luck | " in page
    assert "| rewards | ok | " in page
    assert "\n\n## rewards\n\n| reward | seconds |\n\n| other | table |\n" in page
