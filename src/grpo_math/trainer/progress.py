"""How far a training is: a bar on a terminal, one plain line per log elsewhere and in training.log."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text
from transformers import TrainerCallback, TrainerState

from grpo_math.runs.progress import WIDTH, Bar, clock

if TYPE_CHECKING:
    from grpo_math.trainer.alarms import Alarms
    from grpo_math.trainer.callbacks import Evaluations

NOTES = {"solved"}  # of the alarms
SHOWN = {"reward": "reward", "accuracy": "accuracy", "kl": "kl", "completions/mean_length": "length"}
GENERATING = ("tokens_per_second", "time/generate", "step_time")
SHOWN_SFT = {"loss": "loss", "mean_token_accuracy": "token accuracy"}
LEAST = ("generating", "tokens/s", "s/step", "kl", "length")  # left out in this order where a line is too long

logger = logging.getLogger(__name__)


def is_step(logs: dict) -> bool:
    """Whether this is the log of a training step: neither TRL's summary at the end nor an evaluation."""
    return "train_runtime" not in logs and "eval_accuracy" not in logs


class Progress(TrainerCallback):
    """step 12/40  reward 0.61  accuracy 0.61  length 14  0.40 s/step  0:00:11 left

    As a context, so that the terminal is itself again however the training ends. Only the first process shows it; the
    pace is that of the last steps, the time left includes the evaluations.
    """

    def __init__(self, alarms: "Alarms", evaluations: "Evaluations"):
        self.alarms, self.evaluations = alarms, evaluations
        self.terminal = contextlib.ExitStack()  # what is to be undone there

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.terminal.close()

    def on_train_begin(self, args, state, control, **_):
        self.first_step, self.known, self.note = state.global_step, {}, Text()
        apart = self.evaluations.seconds
        bar = Bar(step_of(state), state.max_steps, done=state.global_step, stays=True, apart=apart)
        self.bar = self.terminal.enter_context(bar) if state.is_world_process_zero else bar

    def on_step_end(self, args, state, control, **_):
        self.bar.name, self.bar.total = step_of(state), state.max_steps
        ahead = self.evaluations.ahead(state)
        self.bar.update(state.global_step, self.note, apart=self.evaluations.seconds, more=ahead)

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or not is_step(logs) or state.global_step == self.first_step:
            return
        generated = logs.get("time/generate")  # other steps reuse an earlier rollout
        self.known |= {key: value for key, value in logs.items() if generated or key not in GENERATING}
        parts = dict(numbers(self.known)) | {"s/step": f"{self.bar.pace or 0:.2f} s/step"}
        line = {"step": step_of(state)} | parts | {"left": f"{clock(self.bar.left or 0)} left"}
        board, full = self.bar.board, "  ".join(line.values())
        if board:
            count = len(self.alarms.raised - NOTES)
            alarms = f"{count} alarm{'s'[: count != 1]}  " if count else ""
            text = fitting(parts, board.console.width - len(alarms))
            self.note = Text.assemble((alarms, "bold red"), text, overflow="ellipsis", no_wrap=True)
            board.update(self.bar.task, note=self.note, refresh=True)
            logger.debug("%s", full)  # to the file
        else:
            logger.info("%s", full, extra={"console": fitting(line, WIDTH)})

    def on_train_end(self, args, state, control, **_):
        self.terminal.close()


def step_of(state: TrainerState) -> str:
    return f"step {state.global_step}/{state.max_steps}"


def numbers(logs: dict) -> Iterator[tuple[str, str]]:
    """What there is to tell of these logs, by the name of each number."""
    shown = SHOWN if "reward" in logs else SHOWN_SFT
    for key, name in shown.items():
        if isinstance(logs.get(key), int | float):
            yield name, f"{name} {logs[key]:.4g}"
    if "tokens_per_second" in logs:
        yield "tokens/s", f"{logs['tokens_per_second']:,.0f} tokens/s"
    if "time/generate" in logs and logs.get("step_time"):
        yield "generating", f"{logs['time/generate'] / logs['step_time']:.0%} generating"


def fitting(parts: dict[str, str], width: int) -> str:
    """A line of at most `width` columns, without the parts that matter least."""
    kept = dict(parts)
    for name in LEAST:
        if len("  ".join(kept.values())) > width:
            kept.pop(name, None)
    return "  ".join(kept.values())
