"""W&B, trackio and TensorBoard, offline: what a real training sent them, read back from their own files."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_math.runs.folder import read_table

SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef", "HF_TOKEN": "hf_madeup0123456789"}


@pytest.fixture
def tracked(write_recipe, tmp_path):
    """Train in a process of its own with all three trackers, and return what it printed."""
    recipe = write_recipe(
        report_to=["wandb", "trackio", "tensorboard"], save_steps=1, eval={"every": 2}, run_name="r", project="mine"
    )

    def train(*arguments: str) -> str:
        places = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
        command = [sys.executable, "-m", "grpo_math.train", "--config", str(recipe), *arguments]
        outside = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}  # of other tests
        done = subprocess.run(command, env=outside | places | SECRETS, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return train


def wandb_records(file: Path):
    """LevelDB's log format: blocks of 32 KiB, in them records, whole (1) or in parts (2 first, 3, 4 last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def wandb_history(folder: Path) -> list[dict]:
    """The rows a run was sent, with the rows of their tables."""
    rows = []
    for record in wandb_records(next(folder.glob("*.wandb"))):
        if record.WhichOneof("record_type") == "history":
            items = [
                (item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in record.history.item
            ]
            rows.append(dict(items))
            if table := rows[-1].get("completions/path"):
                rows[-1]["completions"] = as_rows(json.loads((folder / "files" / table).read_text()))
    return rows


def as_rows(table: dict) -> list[dict]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def trackio_history(tmp_path) -> list[dict]:
    with sqlite3.connect(tmp_path / "trackio" / "mine.db") as database:
        runs = database.execute("SELECT DISTINCT run_name FROM metrics").fetchall()
        assert runs == [("r",)]
        return [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]


def tensorboard_scalars(tmp_path) -> dict[int, dict]:
    """Step -> every scalar that counts."""
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    events = tensorboard_events(tmp_path)
    for tag in events.PluginTagToContent("scalars"):
        for event in events.Tensors(tag):
            assert tag == "train/epoch" or tag not in found.get(event.step, {})  # a step's and its evaluation's
            found.setdefault(event.step, {})[tag] = make_ndarray(event.tensor_proto).item()
    return found


def tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    return EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()


def metrics_of(tmp_path) -> list[dict]:
    """metrics.jsonl under the names that trackers know."""
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [
        {"train/global_step" if name == "step" else name if name.startswith("eval/") else f"train/{name}": value
         for name, value in json.loads(line).items() if value is not None}
        for line in lines
    ]  # fmt: skip


def test_all_trackers_get_every_metric_under_one_name_and_the_completions_of_every_step(tracked, tmp_path):
    output = tracked()
    expected = metrics_of(tmp_path)
    assert {"train/reward", "train/rewards/format/mean", "train/accuracy"} <= expected[0].keys()
    assert any({"eval/accuracy", "eval/format_accuracy"} <= row.keys() for row in expected)

    (wandb_run,) = tmp_path.glob("wandb/offline-run-*")
    assert [record.run.project for record in wandb_records(next(wandb_run.glob("*.wandb"))) if record.run.run_id] == [
        "mine"
    ]
    for history in (wandb_history(wandb_run), trackio_history(tmp_path)):
        for row in expected:
            sent = [one for one in history if row.items() <= one.items()]
            assert len(sent) == 1, row
    scalars = tensorboard_scalars(tmp_path)
    for row in expected:
        step = row.pop("train/global_step")
        assert {name: scalars[step][name] for name in row} == pytest.approx(row, rel=1e-6)

    kept = [read_table(file) for file in sorted((tmp_path / "run" / "completions").glob("completions_*.parquet"))]
    assert [[row["step"] for row in table] for table in kept] == [[1] * 4, [2] * 4]
    tables = [row["completions"] for row in wandb_history(wandb_run) if "completions" in row]
    sent = [row["completions"]["_value"] for row in trackio_history(tmp_path) if "completions" in row]
    for shown in (tables, sent):
        assert [[row["reward"] for row in table] for table in shown] == [
            [row["reward"] for row in table] for table in kept
        ]
        assert shown[0][0].keys() == kept[0][0].keys()

    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for secret in SECRETS.values():
        assert secret not in output
        assert not [file for file in files if secret.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_runs(tracked, tmp_path):
    tracked()
    tracked("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1"), "--max_steps", "3")
    expected = metrics_of(tmp_path)
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert [folder.name.split("-")[-1] for folder in tmp_path.glob("wandb/offline-run-*")] == [identity] * 2

    scalars = tensorboard_scalars(tmp_path)  # which holds no step twice
    assert sorted(step for step in scalars if "train/reward" in scalars[step]) == [1, 2, 3]
    again = next(row for row in expected if row["train/global_step"] == 2 and "train/reward" in row)
    assert scalars[2]["train/step_time"] == pytest.approx(again["train/step_time"])
    steps = [row["train/global_step"] for row in trackio_history(tmp_path) if "train/reward" in row]
    assert steps == [1, 2, 2, 3]  # the step made again is in trackio, and in W&B, twice
