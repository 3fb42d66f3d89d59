"""Alarms while a training runs: the cause by its name, and the fix, once each, in training.log and alarms.jsonl.

`alarms.stop_on` names those that stop the training; it is then not finished, and exits with status 2. A note (`solved`)
is not an alarm: nothing is wrong. course.py decides which are raised.
"""

import logging

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl

from grpo_math.errors import UserError
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import append_rows, forget_after, read_rows
from grpo_math.trainer.course import Course
from grpo_math.trainer.progress import NOTES

logger = logging.getLogger(__name__)


class Alarms(TrainerCallback):
    """Looks at every log of a GRPO run; of an SFT run for `nan` alone.

    `raised` are the alarms and notes so far, `stopped` is the alarm that stopped the run.
    """

    def __init__(self, course: Course):
        self.course, self.folder, self.file = course, course.folder, course.folder / "alarms.jsonl"
        self.raised: set[str] = set()
        self.sound = 0  # the last step whose log was finite
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, **_):
        """A resumed run knows what one that never stopped would: the alarms up to its checkpoint, its logs and
        evaluations; all processes do, and so agree when one stops the run."""
        self.course.args, self.sound, step = args, state.global_step, state.global_step or -1
        rows: list[dict] = []
        if state.is_world_process_zero:
            if self.file.exists():
                self.raised = {row["alarm"] for row in forget_after(step, self.file)}
            rows = [row for row in read_rows(self.folder / "metrics.jsonl") if row["step"] <= step]
        self.raised, rows = broadcast_object_list([self.raised, rows])
        self.course.recall(rows)

    def on_log(self, args, state, control, logs=None, **_):
        found, step = self.course.look(state.global_step, logs), state.global_step
        if "loss" in logs and "nan" not in found:
            self.sound = step
        for name, says in found.items():
            if name not in self.raised and state.is_world_process_zero:
                kind = "note" if name in NOTES else "alarm"
                logger.info("%s %s at step %d: %s", kind, name, step, says)
                append_rows([{"step": step, "alarm": name, "says": says, "level": kind}], self.file)
            self.raised.add(name)
            if name in self.course.spec.stop_on:
                self.stopped = self.stopped or f"{name}: {says}"
        self.stop(control)

    def on_epoch_end(self, args, state, control, **_):
        self.stop(control)  # transformers may want to save here too

    def stop(self, control: TrainerControl) -> None:
        if self.stopped:
            control.should_training_stop, control.should_save = True, False

    def check(self) -> None:
        """Raise UserError where an alarm has stopped the training."""
        if self.stopped:
            found = complete_checkpoints(self.folder)
            good = [step for step in found if step <= self.sound]
            which = "last good" if self.stopped.startswith("nan:") else "last"
            last = f"the {which} checkpoint is {found[max(good)]}" if good else "there is no checkpoint before it"
            raise UserError(f"alarm {self.stopped} ({last})")
