"""How far a training is: one live line on a terminal, one plain line per log elsewhere and in training.log."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback

if TYPE_CHECKING:
    from grpo_math.trainer.alarms import Alarms

NOTES = {"solved"}  # of the alarms
SHOWN = {"reward": "reward", "accuracy": "accuracy", "kl": "kl", "completions/mean_length": "length"}
GENERATING = ("tokens_per_second", "time/generate", "step_time")
SHOWN_SFT = {"loss": "loss", "mean_token_accuracy": "token accuracy"}

logger = logging.getLogger(__name__)


def is_step(logs: dict) -> bool:
    """Whether this is the log of a training step: neither TRL's summary at the end nor an evaluation."""
    return "train_runtime" not in logs and "eval_accuracy" not in logs


class Progress(TrainerCallback):
    """step 12/40  reward 0.61  accuracy 0.61  length 14  812 tokens/s  71% generating  0.40 s/step  0:00:11 left

    As a context, so that the terminal is itself again however the training ends. Only the first process speaks.
    """

    def __init__(self, alarms: "Alarms"):
        self.alarms = alarms
        self.terminal = contextlib.ExitStack()  # what is to be undone there
        self.live = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.terminal.close()

    def on_train_begin(self, args, state, control, **_):
        self.started, self.first_step, self.text = time.perf_counter(), state.global_step, ""
        self.known = {}
        self.step = f"step {state.global_step}/{state.max_steps}"
        console = Terminal()
        if state.is_world_process_zero and sys.stdout.isatty() and console.is_interactive:
            stderr = sys.stderr.isatty()
            live = Live(console=console, get_renderable=self.line, refresh_per_second=2, redirect_stderr=stderr)
            self.terminal.enter_context(live)
            self.live = True

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or not is_step(logs) or state.global_step == self.first_step:
            return
        self.step = f"step {state.global_step}/{state.max_steps}"
        pace = (time.perf_counter() - self.started) / (state.global_step - self.first_step)
        left = f"{clock(pace * (state.max_steps - state.global_step))} left"
        generated = logs.get("time/generate")  # other steps reuse an earlier rollout
        self.known |= {key: value for key, value in logs.items() if generated or key not in GENERATING}
        self.text = "  ".join([*numbers(self.known), f"{pace:.2f} s/step", left])
        logger.log(logging.DEBUG if self.live else logging.INFO, "%s  %s", self.step, self.text)  # DEBUG: to the file

    def on_train_end(self, args, state, control, **_):
        self.terminal.close()

    def line(self) -> Text:
        """Drawn anew several times a second, in a thread of its own."""
        count = len(self.alarms.raised - NOTES)
        alarms = Text(f"  {count} alarm{'s'[: count != 1]}", "bold red") if count else ""
        elapsed = clock(time.perf_counter() - self.started)
        return Text.assemble((self.step, "bold"), alarms, f"  {self.text}" if self.text else "", f"  {elapsed} elapsed")


class Terminal(Console):
    """Its cursor is never hidden: no way of dying, not even SIGKILL, leaves it so."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def numbers(logs: dict) -> Iterator[str]:
    shown = SHOWN if "reward" in logs else SHOWN_SFT
    for key, name in shown.items():
        if isinstance(logs.get(key), int | float):
            yield f"{name} {logs[key]:.4g}"
    if "tokens_per_second" in logs:
        yield f"{logs['tokens_per_second']:,.0f} tokens/s"
    if "time/generate" in logs and logs.get("step_time"):
        yield f"{logs['time/generate'] / logs['step_time']:.0%} generating"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
