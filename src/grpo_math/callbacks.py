"""Beside the training: metrics.jsonl for programs, one line a log for people, accuracy before, during and after."""

import json
import logging
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback

from grpo_math.data import Problem
from grpo_math.evaluate import Evaluation, evaluate
from grpo_math.processes import Burst
from grpo_math.recipe import Recipe
from grpo_math.run_folder import read_rows, write_rows

logger = logging.getLogger(__name__)


def callbacks(recipe: Recipe, tokenizer, problems: list[Problem]) -> list[TrainerCallback]:
    """All of a run's, the evaluations first; without problems nothing is evaluated."""
    return [Evaluations(recipe, tokenizer, problems), MetricsFile(recipe.output_dir), Progress()]


def unfinished(state) -> bool:
    """Whether the training was stopped before its last step."""
    return state.global_step < state.max_steps


def is_step(logs: dict) -> bool:
    """Whether this is the log of a training step: neither TRL's summary at the end nor an evaluation."""
    return "train_runtime" not in logs and "eval_accuracy" not in logs


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
        if not state.is_world_process_zero or not is_step(logs):
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
        if not state.is_world_process_zero or not is_step(logs) or state.global_step == self.first_step:
            return
        done = state.global_step - self.first_step
        pace = (time.perf_counter() - self.started) / done
        left = int(pace * (state.max_steps - state.global_step))
        shown = {"reward": "reward", "accuracy": "accuracy", "kl": "kl", "completions/mean_length": "length"}
        if "reward" not in logs:  # SFT
            shown = {"loss": "loss", "mean_token_accuracy": "token accuracy"}
        numbers = "  ".join(
            f"{name} {logs[key]:.4g}" for key, name in shown.items() if isinstance(logs.get(key), int | float)
        )
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        logger.info("step %d/%d  %s  %.2f s/step  %s left", state.global_step, state.max_steps, numbers, pace, clock)


class StopOnSignal(TrainerCallback):
    """As a context: SIGTERM and Ctrl-C finish the step, save a checkpoint and end the training; a second one ends it at
    once. All processes agree, whichever of them was told: it is enough that one was."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self):
        self.wanted, self.burst = False, Burst()
        self.earlier = {number: signal.signal(number, self.note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.burst.begins():
            if self.wanted:
                self.__exit__()
                signal.raise_signal(number)
            self.wanted = True

    def on_step_end(self, args, state, control, **_):
        told = reduce(torch.tensor(float(self.wanted), device=args.device))
        if told and unfinished(state):
            control.should_save = control.should_training_stop = True


class Evaluations(TrainerCallback):
    """Evaluate before the first step and after the last, and every few steps, at the training's own precision.

    One line each in OUTPUT_DIR/eval.jsonl, every completion in OUTPUT_DIR/completions/eval-STEP.jsonl, and for W&B
    eval/accuracy and eval/format_accuracy. A resumed run keeps the evaluations made up to its checkpoint.
    """

    def __init__(self, recipe: Recipe, tokenizer, problems: list[Problem]):
        self.recipe, self.tokenizer, self.problems = recipe, tokenizer, problems
        self.file = recipe.output_dir / "eval.jsonl"
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        self.seconds = 0.0  # spent evaluating by this process; a resumed run did not spend those before it
        self.trainer: Trainer | None = None

    def on_train_begin(self, args, state, control, model=None, **_):
        rows = [row for row in read_rows(self.file) if row["step"] <= state.global_step]
        if state.is_world_process_zero:
            write_rows(rows, self.file)
        first = [row for row in rows if row["step"] == 0]
        if state.global_step:
            self.before = Evaluation(**first[-1]) if first else None
        elif self.recipe.eval.before_after:
            self.before = self.measure("before", model, state)

    def on_step_end(self, args, state, control, model=None, **_):
        every, step = self.recipe.eval.every_steps, state.global_step
        last = self.recipe.eval.before_after and step == state.max_steps  # on_train_end's
        if every and step % every == 0 and not last:
            wanted = control.should_log
            self.measure(f"step {step}", model, state)
            control.should_log = wanted  # the evaluation's log has taken it back

    def on_train_end(self, args, state, control, model=None, **_):
        if self.recipe.eval.before_after and not unfinished(state):
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
        # Not TRL's own log, which would take the step's metrics with it. W&B shows eval_X as eval/X.
        shown = {"eval_accuracy": result.accuracy, "eval_format_accuracy": result.format_accuracy}
        Trainer.log(self.trainer, shown)
        return result
