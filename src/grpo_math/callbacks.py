"""Beside the training: metrics.jsonl for programs, one line a log for people, accuracy before and after."""

import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerCallback

from grpo_math.data import Problem
from grpo_math.evaluate import Evaluation, evaluate
from grpo_math.recipe import Recipe
from grpo_math.run_folder import read_rows, write_rows

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """One JSON line a log in OUTPUT_DIR/metrics.jsonl: step, epoch, and every metric under TRL's name."""

    def __init__(self, output_dir: Path):
        self.path = output_dir / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **_):
        """After a resume, forget the steps that will be made again."""
        if not state.is_world_process_zero:
            return
        write_rows([row for row in read_rows(self.path) if row["step"] <= state.global_step], self.path)

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or "train_runtime" in logs:  # the last is TRL's summary, no step
            return
        row = {"step": state.global_step, **{key: finite(value) for key, value in logs.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def finite(value):
    """NaN and infinity are not JSON: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress(TrainerCallback):
    """step 12/40  reward 0.61  accuracy 0.61  length 14  0.4 s/step  0:11 left"""

    def on_train_begin(self, args, state, control, **_):
        self.started, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        done = state.global_step - self.first_step
        if not state.is_world_process_zero or "train_runtime" in logs or not done:
            return
        pace = (time.perf_counter() - self.started) / done
        left = int(pace * (state.max_steps - state.global_step))
        shown = {"reward": "reward", "accuracy": "accuracy", "kl": "kl", "completions/mean_length": "length"}
        numbers = "  ".join(
            f"{name} {logs[key]:.4g}" for key, name in shown.items() if isinstance(logs.get(key), int | float)
        )
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        logger.info("step %d/%d  %s  %.2f s/step  %s left", state.global_step, state.max_steps, numbers, pace, clock)


class BeforeAfter(TrainerCallback):
    """Evaluate before the first step and after the last, at the training's own precision.

    One line each in OUTPUT_DIR/eval.jsonl, every completion in OUTPUT_DIR/completions/eval-STEP.jsonl. A resumed run
    keeps the evaluation made before its first step. Without problems it does nothing.
    """

    def __init__(self, recipe: Recipe, tokenizer, problems: list[Problem]):
        self.recipe, self.tokenizer, self.problems = recipe, tokenizer, problems
        self.file = recipe.output_dir / "eval.jsonl"
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        self.seconds = 0.0  # spent evaluating by this process; a resumed run did not spend those before it

    def on_train_begin(self, args, state, control, model=None, **_):
        rows = [row for row in read_rows(self.file) if row["step"] <= state.global_step]
        if state.is_world_process_zero:
            write_rows(rows, self.file)
        first = [row for row in rows if row["step"] == 0]
        if state.global_step:
            self.before = Evaluation(**first[-1]) if first else None
        elif self.problems:
            self.before = self.measure("before", model, state)

    def on_train_end(self, args, state, control, model=None, **_):
        if self.problems:
            self.after = self.measure("after", model, state)

    def measure(self, moment: str, model, state) -> Evaluation:
        result, rows = evaluate(self.recipe, model, self.tokenizer, self.problems, state.global_step)
        self.seconds += result.seconds
        if state.is_world_process_zero:
            completions = self.recipe.output_dir / "completions"
            completions.mkdir(exist_ok=True)
            write_rows(rows, completions / f"eval-{result.step:06d}.jsonl")
            with self.file.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            logger.info("%s: %s", moment, result)
        return result
