"""Does a long run grow? Memory, open files, processes and disk of a training with all its callbacks.

usage: python benchmarks/soak.py [--steps 500]

The quickstart's policy, made anew, learns its problems: checkpoints every 20 steps, two of them kept, an evaluation
every 50, completions, alarms, TensorBoard. Every figure is of the training's process and its children, read from
outside, after the first fifth of the steps. The slope of memory is that of a straight line through the least reading of
every tenth of the rest: what is held between two steps, and not what one takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml

from grpo_math.quickstart import make_policy, make_tokenizer, write_problems
from grpo_math.runs.folder import read_rows

MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
RECIPE = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "quickstart.yaml").read_text())


def write_run(folder: Path, steps: int) -> Path:
    write_problems(folder / "arithmetic", seed=0)
    texts = [text for row in read_rows(folder / "arithmetic" / "train.jsonl") for text in row.values()]
    tokenizer = make_tokenizer(texts)
    make_policy(tokenizer).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    changes = {
        "dataset": {"name": "gsm8k", "path": str(folder / "arithmetic")},
        "model_name_or_path": str(folder / "policy"),
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-5,
        "rewards": {"correctness": {}, "format": {"weight": 0.2}, "brevity": {"weight": 0.1}},
        "save_steps": 20,
        "save_total_limit": 2,
        "eval": {"every": 50, "before_after": True, "best": True, "batch_size": 50},
        "report_to": "tensorboard",
        "preflight": False,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def reading(process: psutil.Process, run: Path) -> dict:
    family = [process, *process.children(recursive=True)]
    rows = read_rows(run / "metrics.jsonl")
    return {
        "step": rows[-1]["step"] if rows else 0,
        "memory": sum(one.memory_info().rss for one in family) / 1e6,
        "files": sum(one.num_fds() for one in family),
        "processes": len(family),
        "zombies": sum(one.status() == psutil.STATUS_ZOMBIE for one in family),
        "disk": sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 1e6 if run.exists() else 0,
    }


def soak(folder: Path, steps: int) -> list[dict]:
    """Train, and read every second."""
    recipe, log = write_run(folder, steps), folder / "out.log"
    command = [sys.executable, "-m", "grpo_math.train", "--config", str(recipe)]
    with log.open("wb") as output:
        training = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | MALLOC | {"OMP_NUM_THREADS": "1"}
        )
    readings = []
    while training.poll() is None:
        try:
            readings.append(reading(psutil.Process(training.pid), folder / "run"))
        except (psutil.Error, OSError):
            continue  # something ended while it was looked at
        time.sleep(1)
    if training.returncode:
        sys.exit(log.read_text()[-3000:])
    return [one for one in readings if one["step"] > steps // 5]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(Path(folder), steps)
    print("step  memory MB  files  processes  zombies  disk MB")
    for one in readings[:: max(1, len(readings) // 10)]:
        print("{step:4}  {memory:9.1f}  {files:5}  {processes:9}  {zombies:7}  {disk:7.1f}".format(**one))
    parts = [part for part in np.array_split(np.array(readings), 10) if len(part)]
    least = [min(part, key=lambda one: one["memory"]) for part in parts]
    slope = float(np.polyfit([one["step"] for one in least], [one["memory"] for one in least], 1)[0]) * 100
    most = {name: [min(one[name] for one in readings), max(one[name] for one in readings)] for name in readings[0]}
    print(f"memory: {slope:+.2f} MB in 100 steps")
    print(json.dumps({"slope": slope, **most}))


if __name__ == "__main__":
    main()
