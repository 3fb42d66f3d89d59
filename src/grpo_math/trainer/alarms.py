"""Alarms while a training runs: the cause by its name, and the fix, once each, in training.log and alarms.jsonl.

Every alarm but `nan` looks at means over the last `alarms.steps` logs. `alarms.stop_on` names those that stop the
training; it is then not finished, and exits with status 2.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl

from grpo_math.data import PromptTemplate
from grpo_math.errors import UserError
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import append_rows, forget_after, read_rows
from grpo_math.trainer.progress import is_step

MOST = {"zero_std": 0.7, "truncated": 0.3, "timeouts": 0.01}  # shares
DRIFT = 3.0  # times the length of the beginning
FINITE = ("loss", "grad_norm")
BEGINNING = ("accuracy", "entropy", "completions/mean_length")
COLLAPSE = 0.1  # of the entropy of the beginning
ROUNDING = 1e-6  # of equal rewards' deviation, in float32
RATIO = 0.8  # of vLLM's and the trainer's probabilities: below, they are no longer the same policy

logger = logging.getLogger(__name__)


class Alarms(TrainerCallback):
    """Looks at every log of a step; without `longest`, the longest completion in tokens, for `nan` alone, as in SFT.

    `raised` are the alarms so far, `stopped` is the one that stopped the run.
    """

    FIX = "lower learning_rate or max_grad_norm, or set bf16: false"  # of what is not finite

    def __init__(self, folder: Path, spec: AlarmSpec, template: PromptTemplate, longest: int | None):
        self.folder, self.spec, self.template, self.longest = folder, spec, template, longest
        self.file = folder / "alarms.jsonl"
        self.window: deque[dict] = deque(maxlen=self.spec.steps)
        self.begin: dict = {}  # means over the first window
        self.raised: set[str] = set()
        self.sound = 0  # the last step whose log was finite
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, **_):
        """A resumed run knows what one that never stopped would: the alarms up to its checkpoint, the last logs before
        it, and the run's beginning; all processes do, and so agree when one stops the run."""
        self.sound, step = state.global_step, state.global_step or -1
        if state.is_world_process_zero:
            if self.file.exists():
                self.raised = {row["alarm"] for row in forget_after(step, self.file)}
            for row in read_rows(self.folder / "metrics.jsonl"):
                if row["step"] <= step and "loss" in row:
                    self.see(row | {name: math.nan for name in FINITE if row.get(name, 0) is None})
        self.raised, self.begin, self.window = broadcast_object_list([self.raised, self.begin, self.window])

    def on_log(self, args, state, control, logs=None, **_):
        if not is_step(logs) or "loss" not in logs:
            return
        found = self.see(logs) or (dict(self.noticed()) if self.full else {})
        self.sound = self.sound if "nan" in found else state.global_step
        for name, says in found.items():
            if name not in self.raised and state.is_world_process_zero:
                logger.info("alarm %s at step %d: %s", name, state.global_step, says)
                append_rows([{"step": state.global_step, "alarm": name, "says": says}], self.file)
            self.raised.add(name)
            if name in self.spec.stop_on:
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

    @property
    def full(self) -> bool:
        return len(self.window) == self.spec.steps and self.longest is not None

    def see(self, logs: dict) -> dict[str, str]:
        """Move the window to this log; returns the alarm `nan` where a metric in it is not finite."""
        self.window.append(logs)
        for name in FINITE:
            if isinstance(logs.get(name), int | float) and not math.isfinite(logs[name]):
                return {"nan": f"{name} is {logs[name]}: {self.FIX}"}
        if self.full:
            self.begin = self.begin or {name: self.mean(name) for name in BEGINNING}
        return {}

    def mean(self, name: str) -> float | None:
        """Over the window, None where no step logged it."""
        found = [logs[name] for logs in self.window if isinstance(logs.get(name), int | float)]
        return sum(found) / len(found) if found else None

    def above(self, name: str, limit: float) -> float | None:
        """The mean where it is above the limit."""
        found = self.mean(name)
        return found if found is not None and found > limit else None

    def noticed(self) -> Iterator[tuple[str, str]]:
        """What the last steps show, by the alarm's name."""
        longer = f"raise max_completion_length ({self.longest})"
        cut = None if self.template.stop else self.mean("completions/clipped_ratio")  # TRL counts stopped ones too
        scored = self.mean("reward_std") or 0  # None: nothing was
        if "reward_std" in self.window[-1] and not scored > ROUNDING:
            yield "reward", f"every completion earns the same, {self.spec.steps} logs long: {self.cause(cut, longer)}"
        elif zero := self.above("frac_reward_zero_std", MOST["zero_std"]):
            yield "zero_std", f"in {zero:.0%} of the groups all completions earn the same: {self.cause(cut, longer)}"
        if cut is not None and cut > MOST["truncated"]:
            yield "truncated", f"{cut:.0%} of the completions are cut off: {longer}"
        if late := self.above("grading/timeouts", MOST["timeouts"]):
            yield "timeouts", f"{late:.1%} of the answers took too long to grade: raise grading: {{timeout: 5.0}}"
        if kl := self.above("kl", self.spec.kl):
            yield "kl", f"{kl:.3g} from the reference, above {self.spec.kl:g}: lower learning_rate, or raise beta"
        ratio = self.mean("sampling/importance_sampling_ratio/mean")
        if ratio is not None and ratio < RATIO:
            yield (
                "importance",
                f"vLLM samples another policy than is trained (ratio {ratio:.2f}): leave its dtype to the trainer's, "
                "or lower learning_rate and steps_per_generation",
            )
        start, now = self.begin["entropy"], self.mean("entropy")
        if start and now is not None and now < COLLAPSE * start:
            yield "entropy", f"fell from {start:.3g} to {now:.3g}, nothing is explored: lower learning_rate, raise beta"
        start, now = self.begin["completions/mean_length"], self.mean("completions/mean_length")
        if start and now is not None and not start / DRIFT <= now <= start * DRIFT:
            yield "length", f"completions went from {start:.0f} to {now:.0f} tokens: read some, for what they are paid"

    def cause(self, cut: float | None, longer: str) -> str:
        """Why all completions earn the same, and what to do."""
        accuracy, start, style = self.mean("accuracy"), self.begin["accuracy"], self.template.answer_style
        if start and accuracy is not None and accuracy < start / 2:
            return f"accuracy fell from {start:.2f} to {accuracy:.2f}, the policy broke: lower learning_rate"
        if unread := self.above("grading/unparsable_gold", 0.5):
            return f"{unread:.0%} of the golds cannot be read: see grpo-math check"
        if cut and cut > 0.9:
            return f"{cut:.0%} are cut off: {longer}"
        if absent := self.above("grading/no_answer", 0.9):
            fix = "add rewards: {format: {weight: 0.2}}, a worked example to the prompt, or SFT first"
            return f"{absent:.0%} give no answer in style {style}: {fix}"
        if accuracy is not None and accuracy > 0.9:
            return f"{accuracy:.0%} are right already: take harder problems, or dataset: {{pass_rate: ...}}"
        if accuracy is not None and accuracy < 0.1:
            return f"{accuracy:.0%} are right: take easier problems, dataset: {{pass_rate: ...}}, or SFT first"
        return "raise temperature or num_generations, or look at the rewards (grpo-math check)"
