"""scripts/offline_bundle.sh: what is wrong with pieces is one line; a bundle is packed, carried, installed and used."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "offline_bundle.sh"
HERE = "{}.{}".format(*sys.version_info)
# Nothing of this environment but its packages, and no network
CLEAN = {
    "PATH": os.environ["PATH"],
    "PYTHON": sys.executable,
    "PIP_NO_INDEX": "1",
    "PIP_INDEX_URL": "http://127.0.0.1:9",
}
CLEAN |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def bundle_sh(*words, environment=CLEAN, script=SCRIPT, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", script, *words], env=environment, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def pieces(tmp_path):
    """A bundle in three pieces with nothing in it but a readme."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        readme = tarfile.TarInfo("README.md")
        readme.size = 1000
        tar.addfile(readme, io.BytesIO(os.urandom(1000)))
    content = packed.getvalue()
    size = -(-len(content) // 3)
    for number in range(3):
        (folder / f"piece-00{number}").write_bytes(content[number * size :][:size])
    (folder / "TARGET").write_text(f"{HERE} manylinux_2_28_x86_64 abcdef0\n")
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def refused(*words, **more) -> str:
    done = bundle_sh(*words, **more)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").strip()


def test_missing_and_damaged_pieces_are_named_and_nothing_is_unpacked(pieces, tmp_path):
    def install() -> str:
        return refused("install", pieces, tmp_path / "there")

    whole = (pieces / "piece-001").read_bytes()
    (pieces / "piece-001").write_bytes(whole[:-1])
    (pieces / "piece-002").write_bytes(b"?" + (pieces / "piece-002").read_bytes()[1:])
    assert install() == f"damaged in {pieces}, carry again: piece-001 piece-002"
    (pieces / "piece-001").unlink()
    (pieces / "TARGET").unlink()
    assert install() == f"missing in {pieces}: TARGET piece-001"
    (pieces / "SHA256SUMS").unlink()
    assert install() == f"{pieces}/SHA256SUMS is missing: carry it with the pieces"
    assert not (tmp_path / "there").exists()


def test_another_python_and_a_folder_in_use_are_refused(pieces, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    assert refused("install", pieces, tmp_path / "there") == f"{tmp_path}/there is not empty: give a new folder"
    old = (pieces / "TARGET").read_text()
    (pieces / "TARGET").write_text(old.replace(HERE, "3.2"))
    sums, new = (pieces / "SHA256SUMS").read_text(), hashlib.sha256((pieces / "TARGET").read_bytes()).hexdigest()
    (pieces / "SHA256SUMS").write_text(sums.replace(hashlib.sha256(old.encode()).hexdigest(), new))
    said = refused("install", pieces, tmp_path / "new")
    assert said == f"the bundle is for Python 3.2, PYTHON={sys.executable} is {HERE}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "55X"], "--size 55X: give bytes, or a number with K, M or G, such as 55M"),
        (["--size"], "--size: give a value"),
        (["--python", "3.12.1"], "--python 3.12.1: give a version such as 3.12"),
        (["--platform", "linux"], "--platform linux: give one like manylinux_2_28_x86_64"),
        (["--model", "/nowhere"], "--model /nowhere: no folder with a config.json"),
        (["--data", "/nowhere"], "--data /nowhere: no such folder"),
        (
            ["--without", "nccl"],
            "--without nccl: constraints.txt has no version of it: give nccl==VERSION, the target's",
        ),
        (["--vllm", "yes"], f"--vllm: unknown option; see the beginning of {SCRIPT}"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_downloaded(tmp_path, words, said):
    assert refused("pack", tmp_path / "out", *words) == said


@pytest.mark.slow
def test_a_bundle_is_packed_installed_on_top_of_a_python_and_trains(tmp_path, policy_folder, problem_folder):
    """Without what this environment has, but for shtab, which it is made to lack."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [line.partition(">")[0] for line in project["dependencies"]]
    words = [word for name in names if name != "shtab" for word in ("--without", name)]
    words += ["--size", "1M", "--model", policy_folder, "--data", problem_folder.parent]
    packed = bundle_sh("pack", tmp_path / "out", *words, environment=os.environ)
    assert packed.returncode == 0, packed.stderr
    assert len(list((tmp_path / "out").glob("piece-*"))) > 1
    assert max(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 2**20

    below = tmp_path / "below" / "site-packages"
    below.mkdir(parents=True)
    for path in Path(distribution("trl").locate_file("")).iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("shtab", "pip", "_", "grpo_math")):
            (below / path.name).symlink_to(path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{below}" exec {sys.base_prefix}/bin/python{HERE} -s "$@"\n')
    python.chmod(0o755)

    (tmp_path / "elsewhere").mkdir()
    environment = CLEAN | {"PYTHON": str(python)}
    script = tmp_path / "out" / "offline_bundle.sh"
    done = bundle_sh("install", "../out", "there", environment=environment, script=script, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    there = tmp_path / "elsewhere" / "there"
    assert f"or: benchmarks/gpu.sh models/{policy_folder.name} data" in done.stdout
    keys = "--model_name_or_path models/* --dataset.path data/gsm8k --max_steps 2 --max_completion_length 8 --use_vllm false"
    keys += " --use_cpu true --bf16 false --dataloader_pin_memory false --eval.max_samples 2 --prompts_per_step 4"
    command = f".venv/bin/grpo-math train --config smollm2_gsm8k --output_dir run {keys}"
    done = subprocess.run(command, shell=True, env=CLEAN, cwd=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (there / "run" / "results.json").exists()
