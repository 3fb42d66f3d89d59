"""Continual evaluation: every new checkpoint of a run is evaluated by a process of its own while it trains.

Each checkpoint is evaluated by a `grpo-math evaluate` of its own, which starts clean, frees its GPU at the end and
continues where it was interrupted. Its figures are appended to RUN/eval.jsonl and, where the run reports to W&B, to the
same W&B run.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from grpo_math.errors import UserError, run_cli
from grpo_math.evaluation.statistics import Figure
from grpo_math.generation import supervised
from grpo_math.generation.processes import start
from grpo_math.generation.vllm_server import show_end, visible_gpus
from grpo_math.models import ModelSource
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import append_rows, only_one, read_rows, wandb_identity

NOT_THE_MODEL = shutil.ignore_patterns("optimizer*", "scheduler*", "rng_state*", "trainer_state*", "global_step*")
TRIES = 2  # per checkpoint
POLL = 2.0  # seconds between two looks at the run folder


class Checkpoint(NamedTuple):
    """A checkpoint of a run, with the fingerprint of its weights."""

    step: int
    folder: Path
    weights: str


def main(options: argparse.Namespace, arguments: list[str]) -> None:
    """The verb `evaluate --watch`; `arguments` are keys of a recipe."""
    run = Path(options.watch)
    if options.out or "--model_name_or_path" in arguments:
        raise UserError("--watch: the run's recipe sets what is evaluated: leave out --model and --out")
    if not run.is_dir():
        raise UserError(f"--watch: no folder {run}: give a run folder, which the training creates at its start")
    kinds = {"config.json": "a model", "adapter_config.json": "an adapter", "settings.json": "an evaluation"}
    for name, what in kinds.items():
        if (run / name).exists():
            raise UserError(f"--watch: {run} is {what}, not a run: give the run folder, which has a recipe.yaml")
    recipe = run / "recipe.yaml"
    if recipe.exists():
        load_recipe(["--config", str(recipe), *arguments], "evaluation")  # report mistakes now
    else:
        print(f"no recipe.yaml in {run} yet: waiting for a training to start", flush=True)
    device = None if options.device is None else chosen(options.device)
    (run / "evaluate").mkdir(exist_ok=True)
    if status := supervised(lambda: run_cli(lambda _: watch(run, device, arguments))):
        sys.exit(status)


def chosen(device: str) -> str:
    """--device as CUDA_VISIBLE_DEVICES names it: as for torch, a number counts the visible GPUs."""
    gpus = visible_gpus()
    known = dict(zip(map(str, range(len(gpus))), gpus, strict=True)) | {gpu: gpu for gpu in gpus if not gpu.isdigit()}
    if device not in known:
        raise UserError(f"--device: no GPU {device}: visible are {len(gpus)}, numbered from 0 ({', '.join(gpus)})")
    return known[device]


def watch(run: Path, device: str | None, arguments: list[str]) -> None:
    """Until the run is finished: evaluate the newest complete checkpoint that is not evaluated yet."""
    print(f"watching {run}", flush=True)
    failures: Counter[Checkpoint | None] = Counter()
    with only_one(run / "evaluate", "--watch"):
        while True:
            finished = (run / "results.json").exists()  # before the checkpoints: the last one is older
            found = newest(run)
            if found and not evaluated(run, found) and failures[found] < TRIES:
                print(f"evaluating {found.folder}", flush=True)
                if not evaluate_checkpoint(run, found, device, arguments):
                    failures[found] += 1
                    attempt = f"attempt {failures[found]} of {TRIES}"
                    print(f"{found.folder} could not be evaluated, {attempt}", file=sys.stderr, flush=True)
            elif finished and found and evaluated(run, found):
                print(f"{run} is finished, and its last checkpoint is evaluated", flush=True)
                return
            elif finished:
                log = run / "watch.log"
                raise UserError(f"{run} is finished, but its last model could not be evaluated: see {log}")
            else:
                time.sleep(POLL)


def newest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one; earlier ones are skipped. A finished run's last one is its final
    model."""
    checkpoints, results = complete_checkpoints(run), run / "results.json"
    if results.exists():
        checkpoints.setdefault(json.loads(results.read_text(encoding="utf-8"))["steps"], run / "final")
    if not checkpoints:
        return None
    step = max(checkpoints)
    try:
        weights = fingerprint_once(checkpoints[step], checkpoints[step].stat().st_mtime_ns)
    except (OSError, UserError):  # being deleted to make room for a newer one, or without weights
        return None
    return Checkpoint(step, checkpoints[step], weights)


@functools.cache
def fingerprint_once(checkpoint: Path, changed: int) -> str:
    """Of many GB, which are read again only where the folder has changed."""
    return ModelSource(str(checkpoint)).fingerprint()


def evaluated(run: Path, found: Checkpoint) -> bool:
    """Whether its figures are in eval.jsonl."""
    known = {(row["step"], row["weights"]) for row in read_rows(run / "eval.jsonl") if "weights" in row}
    return (found.step, found.weights) in known


def evaluate_checkpoint(run: Path, found: Checkpoint, device: str | None, arguments: list[str]) -> bool:
    """Whether that worked; its figures are in eval.jsonl then."""
    step, out, log = found.step, run / "evaluate" / f"{found.folder.name}-{found.weights[:8]}", run / "watch.log"
    command = [sys.executable, "-m", "grpo_math", "evaluate", "--config", str(run / "recipe.yaml")]
    environment = dict(os.environ) | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    with held(run, found.folder) as model:
        if model is None:
            return False
        if start([*command, "--model", str(model), "--out", str(out), *arguments], environment, log).wait():
            show_end(log)
            return False
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rows = [row | {"step": step, "weights": found.weights} for row in results["evaluations"]]
    append_rows(rows, run / "eval.jsonl")
    for row in rows:
        accuracy = Figure.of(row, "accuracy")
        print(f"step {step}: accuracy {accuracy} on {row['problems']:,} problems of {row['dataset']}", flush=True)
    log_to_wandb(run, step, {f"eval/{name}": value for name, value in results["metrics"].items()})
    return True


@contextmanager
def held(run: Path, checkpoint: Path) -> Iterator[Path | None]:
    """The checkpoint's model in a folder of our own, so that the training may delete it in the meantime: hard links
    where the file system has them. None where it was deleted already."""
    folder = run / "evaluate" / "held"
    shutil.rmtree(folder, ignore_errors=True)  # of a watcher that was killed
    model: Path | None = folder / checkpoint.name
    try:
        shutil.copytree(checkpoint, folder / checkpoint.name, copy_function=link_or_copy, ignore=NOT_THE_MODEL)
    except (OSError, shutil.Error):
        model = None
    yield model
    shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    """A hard link or, across file systems, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def log_to_wandb(run: Path, step: int, metrics: dict[str, float]) -> None:
    """eval/accuracy and its companions in the run's own W&B run, over train/global_step."""
    identity = wandb_identity(run)
    if identity is None:
        return
    import wandb

    mode = os.environ.get("WANDB_MODE", "shared")
    settings = wandb.Settings(mode=mode, x_primary=False, x_label="evaluation") if mode == "shared" else None
    try:
        with wandb.init(**identity, resume="allow", settings=settings, dir=run) as shown:
            shown.define_metric("train/global_step")
            shown.define_metric("eval/*", step_metric="train/global_step")
            shown.log(metrics | {"train/global_step": step})
    except Exception as error:  # of W&B or the network: the figures are in eval.jsonl
        print(f"W&B rejected step {step} ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
