"""Shared by all tests: a tiny policy made in code, real data where a folder of it is named."""

import gc
import json
import os
import signal
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

gc.disable()  # until all tests are collected: importing torch and TRL takes a fifth longer with it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, processes of tests would too
ROOT = Path(__file__).parents[1]
ROWS = [
    {"question": f"Ava has {a} apples and gets {b} more. How many?", "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
    for a in range(1, 9)
    for b in range(1, 4)
]  # fmt: skip


@pytest.fixture
def real_data() -> Path:
    """The folder with gsm8k/, math500/ and svamp/; tests that need it skip where it is not."""
    folder = os.environ.get("GRPO_MATH_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: set GRPO_MATH_TEST_DATA to a folder with gsm8k/, math500/ and svamp/")
    return Path(folder)


@pytest.fixture(scope="session")
def tokenizer():
    from grpo_math.quickstart import make_tokenizer

    return make_tokenizer([row["question"] + row["answer"] for row in ROWS])


def save_policy(tokenizer, folder: Path, hidden_size: int) -> Path:
    import torch

    from grpo_math.quickstart import make_policy

    torch.manual_seed(0)
    make_policy(tokenizer, hidden_size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policy_folder(tokenizer, tmp_path_factory) -> Path:
    """A random policy with a tokenizer, as small as the code paths allow."""
    return save_policy(tokenizer, tmp_path_factory.mktemp("policy"), hidden_size=32)


@pytest.fixture(scope="session")
def problem_folder(tmp_path_factory) -> Path:
    """Two dozen one-step problems in GSM8K's form, train.jsonl and test.jsonl."""
    folder = tmp_path_factory.mktemp("problems") / "gsm8k"
    folder.mkdir()
    for split, rows in (("train", ROWS[:16]), ("test", ROWS[16:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def write_recipe(tmp_path, policy_folder, problem_folder):
    """Write a small CPU recipe with some keys replaced (None leaves one out) and return its path."""
    import yaml

    def write(name: str = "recipe.yaml", **changes) -> Path:
        keys = {
            "dataset": {"name": "gsm8k", "path": str(problem_folder)},
            "rewards": {"correctness": {}, "format": {"weight": 0.2}},
            "model_name_or_path": str(policy_folder),
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            **changes,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return path

    return write


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A machine with eight GPUs, of which the last has two MIG devices, as far as `nvidia-smi -L` tells."""
    names = "abcdefgh"
    lines = [f"GPU {index}: NVIDIA H200 (UUID: GPU-{name})" for index, name in enumerate(names)]
    lines += [f"  MIG 1g.18gb     Device  {index}: (UUID: MIG-{index}h)" for index in range(2)]
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def wait_for(condition, seconds: float = 120) -> None:
    """Fails where the condition is not true by then."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pytest_collection_finish():
    """accelerate collects garbage in each training: without what has been imported by now it takes half as long."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """How much the property tests tried."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", []):
                if name == "tried" and report.when == "call":
                    terminalreporter.write_line(f"{report.nodeid}: {value}")
