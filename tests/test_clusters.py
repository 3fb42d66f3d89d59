"""Dockerfile, Kubernetes, SkyPilot and Colab: what can be checked without a cluster."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, wait_for

from grpo_math.__main__ import parse
from grpo_math.recipe.recipe import resolve

DOCKERFILE = (ROOT / "Dockerfile").read_text()
KUBERNETES = [*yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())]
SKYPILOT = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
POD = KUBERNETES[1]["spec"]["template"]["spec"]
(TRAIN,) = POD["containers"]
SCRIPTS = {
    "kubernetes": (TRAIN["args"][0], {one["name"]: one["value"] for one in TRAIN["env"] if "value" in one}),
    "skypilot": (SKYPILOT["run"], SKYPILOT["envs"]),
}


def commands(text: str) -> list[list[str]]:
    """The words after `grpo-math`, of each command in a script."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|/|\s)grpo-math ([a-z]+ .*?)(?: &)?$", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def check(words: list[str]) -> None:
    options = parse(words)
    if getattr(options, "words", None):
        found = resolve(options.words, "evaluation" if options.verb == "evaluate" else None)
        assert found[1] == [], found[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_cluster_file_runs_a_command_of_ours(name):
    script, environment = SCRIPTS[name]
    for variable, value in environment.items():
        script = script.replace(f"${variable}", value)
    (words,) = commands(script)
    assert words[0] == "launch"
    assert words[-2:] == ["--resume_from_checkpoint", "auto"]
    check(words)


def test_the_commands_of_the_colab_notebook_are_ours():
    cells = [cell for cell in nbformat.read(ROOT / "examples" / "colab_t4.ipynb", 4).cells if cell.cell_type == "code"]
    source = "\n".join(cell.source for cell in cells)
    assert not any(cell.outputs for cell in cells)  # nobody has run it
    for name, value in re.findall(r'^([A-Z]+) = "(.*)"$', source, re.MULTILINE):
        source = source.replace(f"{{{name}}}", value)
    found = commands(source)
    assert [words[0] for words in found] == "check launch launch compare evaluate evaluate compare report".split()
    for words in found:
        check(words)


@pytest.mark.parametrize(("does", "status"), [("finish", 0), ("stop", 1), ("fail", 2)])
def test_a_pod_ends_with_status_0_only_where_the_run_is_finished(tmp_path, does, status):
    """A run that is told to stop saves a checkpoint and ends with 0; its Job has to start another pod."""
    program = tmp_path / "bin" / "grpo-math"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/bash\ntrap "exit 0" TERM\n'
        'case $DOES in finish) touch "$RUNS/r/results.json" ;; fail) exit 2 ;; '
        'stop) touch "$RUNS/waits"; while :; do sleep 0.05; done ;; esac\n'
    )
    program.chmod(0o755)
    (tmp_path / "r").mkdir()
    script = SCRIPTS["kubernetes"][0].replace("/runs", str(tmp_path))
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "DOES": does, "RECIPE": "r", "LAYOUT": "cpu", "RUNS": str(tmp_path),
    }  # fmt: skip
    pod = subprocess.Popen([*TRAIN["command"], script], env=environment)
    if does == "stop":
        wait_for((tmp_path / "waits").exists, 10)
        time.sleep(0.2)
        pod.terminate()
    assert pod.wait(10) == status


def test_the_images_base_has_the_cuda_of_its_torch():
    """PyPI's torch 2.13 is built for CUDA 13.0; another torch wants another base image."""
    constraints = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in constraints
    assert re.search(r"^FROM nvidia/cuda:13\.0\.\d+-devel-ubuntu24\.04$", DOCKERFILE, re.MULTILINE)  # Python 3.12


def test_the_image_installs_extras_that_the_package_has():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)
    assert len(named) == 2
    assert {*",".join(named).split(",")} <= extras.keys()
    assert [line for line in DOCKERFILE.splitlines() if line.startswith("ENTRYPOINT")] == ['ENTRYPOINT ["grpo-math"]']
    assert json.loads(re.search(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)[1]) == ["/cache", "/work/runs"]


def copied() -> list[str]:
    return [name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]


def test_docker_sends_what_the_image_copies_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


@pytest.mark.slow
def test_the_wheel_builds_from_what_the_image_copies(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, context / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, context]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ("recipes", "accelerate_configs"):
        wanted = {Path("grpo_math") / folder / file.name for file in (ROOT / folder).iterdir()}
        assert wanted <= inside
