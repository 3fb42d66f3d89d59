"""Alarms while a training runs: the cause by its name, and the fix, once each, in training.log and alarms.jsonl.

Every alarm but `nan` and `diverged` looks at means over the last `alarms.steps` logs. `alarms.stop_on` names those that
stop the training; it is then not finished, and exits with status 2. A note (`solved`) is no alarm: nothing is wrong.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl

from grpo_math.data import PromptTemplate
from grpo_math.errors import UserError
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.recipe.trl import truncated_sampling
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import append_rows, forget_after, read_rows
from grpo_math.trainer.progress import NOTES, is_step

MOST = {"zero_std": 0.7, "truncated": 0.3, "timeouts": 0.01}  # shares
EARLY = 0.05  # accuracy, below which a format is learned before right answers
RARE = 0.044  # accuracy at which 0.7 of the groups of eight are all wrong or all right
SOLVED = 0.9  # accuracy of the training's completions
DRIFT = 3.0  # times the length of the beginning
FINITE = ("loss", "grad_norm")
BEGINNING = ("accuracy", "entropy", "completions/mean_length")
COLLAPSE = 0.1  # of the entropy of the beginning
ROUNDING = 1e-6  # of equal rewards' deviation, in float32
RATIO = 0.8  # of vLLM's and the trainer's probabilities: below, they are no longer the same policy
SPIKE = 10  # times the median of the gradient's norm
SPIKES = 3
LASTING = 3  # windows through which the composition of the reward has to be wrong
FALLING = 3  # evaluations in a row below the best one's interval
ERRORS = 2  # standard errors by which the reward has risen

logger = logging.getLogger(__name__)


def most_zero_std(group: int) -> float:
    """The share of zero-std groups above which there is an alarm: 0.7, and for fewer than eight completions what an
    accuracy of 4.4 % gives by arithmetic, p^G + (1 - p)^G, as it gives 0.7 for eight; 0.92 for two."""
    return max(MOST["zero_std"], RARE**group + (1 - RARE) ** group)


class Alarms(TrainerCallback):
    """Looks at every log of a GRPO run; of an SFT run for `nan` alone.

    `graded` are the entries of the rewards that depend on the solution. `raised` are the alarms and notes so far,
    `stopped` is the alarm that stopped the run.
    """

    FIX = "lower learning_rate or max_grad_norm, or set bf16: false"  # of what is not finite

    def __init__(
        self,
        folder: Path,
        spec: AlarmSpec,
        template: PromptTemplate,
        baseline: str = "group",
        graded: Sequence[str] = (),
    ):
        self.folder, self.spec, self.template = folder, spec, template
        self.baseline, self.graded = baseline, graded
        self.file = folder / "alarms.jsonl"
        self.logs: deque[dict] = deque(maxlen=LASTING * spec.steps)
        self.begin: dict = {}  # means over the first window
        self.rewards: list[tuple[int, float]] = []  # by step
        self.held_out: list[tuple[int, float, float]] = []  # step, accuracy, lower end of its interval
        self.raised: set[str] = set()
        self.sound = 0  # the last step whose log was finite
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, **_):
        """A resumed run knows what one that never stopped would: the alarms up to its checkpoint, its logs and
        evaluations; all processes do, and so agree when one stops the run."""
        self.args, self.sound, step = args, state.global_step, state.global_step or -1
        if state.is_world_process_zero:
            if self.file.exists():
                self.raised = {row["alarm"] for row in forget_after(step, self.file)}
            for row in read_rows(self.folder / "metrics.jsonl"):
                if row["step"] <= step:
                    lost = {name: math.nan for name in FINITE if row.get(name, 0) is None}
                    self.see(row["step"], {name.replace("eval/", "eval_"): value for name, value in row.items()} | lost)
        known = [self.raised, self.begin, self.logs, self.rewards, self.held_out]
        self.raised, self.begin, self.logs, self.rewards, self.held_out = broadcast_object_list(known)

    def on_log(self, args, state, control, logs=None, **_):
        found, step = self.see(state.global_step, logs), state.global_step
        if "nan" not in found:
            self.sound = step if "loss" in logs else self.sound
            found = dict(self.noticed()) if self.full else {}
        for name, says in found.items():
            if name not in self.raised and state.is_world_process_zero:
                kind = "note" if name in NOTES else "alarm"
                logger.info("%s %s at step %d: %s", kind, name, step, says)
                append_rows([{"step": step, "alarm": name, "says": says, "level": kind}], self.file)
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
    def window(self) -> list[dict]:
        """The last logs."""
        return list(self.logs)[-self.spec.steps :]

    @property
    def full(self) -> bool:
        return len(self.logs) >= self.spec.steps and hasattr(self.args, "num_generations")

    def see(self, step: int, logs: dict) -> dict[str, str]:
        """Remember this log; returns the alarm `nan` where a metric in it is not finite."""
        if "eval_accuracy" in logs:
            self.held_out.append((step, logs["eval_accuracy"], logs.get("eval_accuracy_low", 0.0)))
        if not is_step(logs) or "loss" not in logs:
            return {}
        self.logs.append(logs)
        for name in FINITE:
            if isinstance(logs.get(name), int | float) and not math.isfinite(logs[name]):
                return {"nan": f"{name} is {logs[name]}: {self.FIX}"}
        if isinstance(logs.get("reward"), int | float):
            self.rewards.append((step, logs["reward"]))
        if self.full:
            self.begin = self.begin or {name: self.mean(name) for name in BEGINNING}
        return {}

    def mean(self, name: str, windows: int = 1) -> float | None:
        """Over the last window or windows, None where no step logged it."""
        logs = list(self.logs)[-windows * self.spec.steps :]
        found = [log[name] for log in logs if isinstance(log.get(name), int | float)]
        return fmean(found) if found else None

    def above(self, name: str, limit: float) -> float | None:
        """The mean where it is above the limit."""
        found = self.mean(name)
        return found if found is not None and found > limit else None

    def noticed(self) -> Iterator[tuple[str, str]]:
        """What the last steps show, by the alarm's name."""
        longer = f"raise max_completion_length ({self.args.max_completion_length})"
        cut, accuracy = self.mean("completions/clipped_ratio"), self.mean("accuracy")
        scored = self.mean("reward_std") or 0  # None: nothing was
        alike = "reward_std" in self.logs[-1] and not scored > ROUNDING
        zero = self.above("frac_reward_zero_std", most_zero_std(self.args.num_generations))
        zero = zero if self.baseline == "group" else None  # without a baseline, groups of equal rewards teach
        solved = accuracy is not None and accuracy > SOLVED
        if solved and (alike or zero):
            yield "solved", f"{accuracy:.0%} of the completions are right: stop here, or take harder problems"
        elif alike:
            yield "reward", f"every completion earns the same, {self.spec.steps} logs long: {self.cause(cut, longer)}"
        elif zero:
            yield "zero_std", f"in {zero:.0%} of the groups all completions earn the same: {self.cause(cut, longer)}"
        if cut is not None and cut > MOST["truncated"]:
            yield "truncated", f"{cut:.0%} of the completions are cut off: {longer}"
        if late := self.above("grading/timeouts", MOST["timeouts"]):
            yield "timeouts", f"{late:.1%} of the answers took too long to grade: raise grading: {{timeout: 5.0}}"
        if kl := self.above("kl", self.spec.kl):
            yield "kl", f"{kl:.3g} from the reference, above {self.spec.kl:g}: lower learning_rate, or raise beta"
        ratio = self.mean("sampling/importance_sampling_ratio/mean")
        if ratio is not None and ratio < RATIO:
            yield "importance", self.other_policy(ratio)
        start, now = self.begin["entropy"], self.mean("entropy")
        if start and now is not None and now < COLLAPSE * start and not solved:
            if self.above("frac_reward_zero_std", 0.5):  # low entropy alone is how healthy runs end
                yield (
                    "entropy",
                    f"fell from {start:.3g} to {now:.3g}, and most groups no longer differ: raise epsilon_high (0.28) or "
                    "temperature, or set entropy_coef: 0.001; then lower learning_rate",
                )
        start, now = self.begin["completions/mean_length"], self.mean("completions/mean_length")
        if start and now is not None and not start / DRIFT <= now <= start * DRIFT:
            yield "length", f"completions went from {start:.0f} to {now:.0f} tokens: read some, for what they are paid"
        yield from self.spikes()
        yield from self.composition(solved)
        yield from self.diverged()

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
        group, distinct = self.args.num_generations, self.mean("completions/distinct")
        if distinct and distinct < max(0.5, 1.5 / group):
            return (
                f"of {group} completions {distinct * group:.1f} are distinct: raise temperature, or lower learning_rate"
            )
        if accuracy is not None and accuracy < 0.1:
            return f"{accuracy:.0%} are right: take easier problems, dataset: {{pass_rate: ...}}, or SFT first"
        return "raise temperature or num_generations, or look at the rewards (grpo-math check)"

    def other_policy(self, ratio: float) -> str:
        """Why the importance sampling weights of vLLM's completions are not about 1."""
        if cut := truncated_sampling(vars(self.args)):
            return (
                f"the weights of vLLM's completions are {ratio:.2g} on average, where 1 is right: with {', '.join(cut)} "
                "vLLM's probabilities are those among the tokens kept, the trainer's among all: sample from all tokens "
                "(top_p: 1.0), or set vllm_importance_sampling_correction: false"
            )
        return (
            f"vLLM samples another policy than is trained (ratio {ratio:.2f}): leave its dtype to the trainer's, or "
            "lower learning_rate and steps_per_generation"
        )

    def spikes(self) -> Iterator[tuple[str, str]]:
        """Of the steps with signal: without one the gradient is 0, or as small as `beta`."""
        norms = [
            log["grad_norm"] for log in self.window if log.get("frac_reward_zero_std", 0) < 1 and "grad_norm" in log
        ]
        usual = median(norms) if norms else 0.0
        high = [norm for norm in norms if norm > SPIKE * usual > 0]
        if len(high) >= SPIKES:
            yield (
                "spike",
                f"the gradient's norm was above {SPIKE} times its median ({usual:.3g}) in {len(high)} of "
                f"{len(norms)} steps: lower learning_rate, or raise prompts_per_step",
            )

    def composition(self, solved: bool) -> Iterator[tuple[str, str]]:
        """Where rewards that know no solution decide which completion of a group is better. At the beginning they may:
        a format is learned before the first right answer, which has to come first here."""
        shares = {
            name: share
            for name in {key.split("/")[1] for key in self.logs[-1] if key.endswith("/variance_share")}
            if (share := self.mean(f"rewards/{name}/variance_share", LASTING)) is not None
        }
        others = shares.keys() - {*self.graded}
        accuracy = self.mean("accuracy", LASTING)
        if len(self.logs) < LASTING * self.spec.steps or not others or len(others) == len(shares):
            return
        most = max(sorted(others), key=shares.__getitem__)
        if shares[most] > 0.5 and not solved and (accuracy is None or accuracy > EARLY):
            yield (
                "composition",
                f"{shares[most]:.0%} of the reward's variance in the groups is that of {most}, which knows no solution: "
                f"lower its weight, or give it gate: {self.graded[0]}",
            )

    def diverged(self) -> Iterator[tuple[str, str]]:
        """The last evaluations are below the interval of the best one, and the reward is higher than after it."""
        if not self.held_out:
            return
        best = max(self.held_out, key=lambda one: (one[1], one[0]))
        step, accuracy, low = best
        later = [one for one in self.held_out if one[0] > step]
        after = [reward for at, reward in self.rewards if at > step][: self.spec.steps]
        now = [reward for _, reward in self.rewards[-self.spec.steps :]]
        if len(later) < FALLING or any(one[1] >= low for one in later[-FALLING:]) or min(len(after), len(now)) < 2:
            return
        error = math.hypot(stdev(after) / math.sqrt(len(after)), stdev(now) / math.sqrt(len(now)))
        if fmean(now) - fmean(after) > ERRORS * error:
            kept = complete_checkpoints(self.folder).get(step)
            model = kept or (
                self.folder / "best" if (self.folder / "best").exists() else "not kept (eval: {best: true})"
            )
            yield (
                "diverged",
                f"the reward rose from {fmean(after):.3g} to {fmean(now):.3g}, held-out accuracy fell from "
                f"{accuracy:.3f} to {later[-1][1]:.3f} in {len(later)} evaluations: the rewards pay for something else; "
                f"the model of step {step} is {model}",
            )
