"""The wheel works anywhere: built, installed into a fresh environment, run in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin/ of an environment with the wheel, and with this environment's packages in place of its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("grpo_math-*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # without the editable install's own .pth
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed", wheel, cwd=folder
    )
    return python.parent


@pytest.fixture
def grpo_math(installed, tmp_path):
    return lambda *words: run(installed / "grpo-math", *words, cwd=tmp_path)


def test_the_package_is_the_wheels(installed, tmp_path):
    imported = run(installed / "python", "-c", "import grpo_math; print(grpo_math.__file__)", cwd=tmp_path)
    assert Path(imported.strip()).is_relative_to(installed.parent)


def test_the_quickstart_runs_in_an_empty_folder(grpo_math, tmp_path):
    assert "report: runs/quickstart/report.html" in grpo_math("quickstart")
    results = json.loads((tmp_path / "runs/quickstart/results.json").read_text())
    assert results["before"]["accuracy"] <= 0.3
    assert results["after"]["accuracy_high"] >= 0.95
    keys = ["--model_name_or_path", "runs/quickstart/policy", "--dataset.path", "runs/quickstart/arithmetic"]
    assert "no errors" in grpo_math("check", "--config", "quickstart", "--layout", "cpu", *keys, "--output_dir", "new")
    plan = grpo_math("launch", "--layout", "cpu", "--config", "quickstart", *keys, "--output_dir", "new", "--dry-run")
    assert "layout cpu: 1 training process" in plan


def test_shipped_recipes_and_their_bounds_are_found_by_name(grpo_math, policy_folder, problem_folder):
    assert "after.accuracy" in grpo_math("report", "--check", ROOT / "docs/results/quickstart")
    here = ["--model_name_or_path", policy_folder, "--dataset.path", problem_folder, "--use_vllm", "false"]
    plan = grpo_math("launch", "--layout", "cpu", "--config", "gsm8k_qwen2.5_0.5b", *here, "--dry-run")
    assert "accelerate_configs/cpu.yaml" in plan
