"""What the logs of a run show: which alarms there are, by their names, with causes and fixes.

Every alarm but `nan` and `diverged` looks at means over the last `alarms.steps` logs, a window.
"""

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from grpo_math.data import NO_THINKING, PromptTemplate
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.recipe.trl import changed_sampling
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.trainer.progress import is_step

MOST = {"zero_std": 0.7, "truncated": 0.3, "timeouts": 0.01, "failed": 0.5}  # shares
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

NOT_FINITE = "lower learning_rate or max_grad_norm, or set bf16: false"  # the fix


def most_zero_std(group: int) -> float:
    """The share of zero-std groups above which there is an alarm: 0.7, and for fewer than eight completions what an
    accuracy of 4.4 % gives by arithmetic, p^G + (1 - p)^G, as it gives 0.7 for eight; 0.92 for two."""
    return max(MOST["zero_std"], RARE**group + (1 - RARE) ** group)


def is_finite(value: object) -> bool:
    """Whether a metric can be averaged: TRL logs None for one without a value."""
    return isinstance(value, int | float) and math.isfinite(value)


class Course:
    """`graded` are the entries of the rewards that depend on the solution, `args` TRL's arguments; those of an SFT have
    no groups, and `nan` is all that is looked for. `switch`: whether the model thinks, and its chat template can stop
    that."""

    args: Any = None

    def __init__(
        self,
        folder: Path,
        spec: AlarmSpec,
        template: PromptTemplate,
        baseline: str,
        graded: Sequence[str],
        switch: bool = False,
    ):
        self.folder, self.spec, self.template = folder, spec, template
        self.baseline, self.graded, self.switch = baseline, graded, switch
        self.logs: deque[dict] = deque(maxlen=LASTING * spec.steps)
        self.begin: dict[str, float | None] = {}  # means over the first window
        self.rewards: list[tuple[int, float]] = []  # by step
        self.held_out: list[tuple[int, float, float]] = []  # step, accuracy, the lower end of its interval

    def recall(self, rows: Iterable[dict]) -> None:
        """See the rows of metrics.jsonl."""
        for row in rows:
            lost = {name: math.nan for name in FINITE if row.get(name, 0) is None}
            self.see(row["step"], {name.replace("eval/", "eval_"): value for name, value in row.items()} | lost)

    def look(self, step: int, logs: dict) -> dict[str, str]:
        """Remember this log of a step or of an evaluation; returns the alarms that there are now."""
        found = self.see(step, logs)
        if found or not self.begin:
            return found
        return dict(self.diverged() if "eval_accuracy" in logs else self.noticed())

    def see(self, step: int, logs: dict) -> dict[str, str]:
        """Remember this log; returns the alarm `nan` where a metric in it is not finite."""
        if "eval_accuracy" in logs:
            self.held_out.append((step, logs["eval_accuracy"], logs.get("eval_accuracy_low", 0.0)))
        if is_step(logs) and "loss" in logs:
            self.logs.append(logs)
            for name in FINITE:
                if isinstance(logs.get(name), int | float) and not math.isfinite(logs[name]):
                    return {"nan": f"{name} is {logs[name]}: {NOT_FINITE}"}
            if is_finite(logs.get("reward")):
                self.rewards.append((step, logs["reward"]))
        if len(self.logs) >= self.spec.steps and hasattr(self.args, "num_generations"):
            self.begin = self.begin or {name: self.mean(name) for name in BEGINNING}
        return {}

    def mean(self, name: str, windows: int = 1) -> float | None:
        """Over the last window or windows, None where no step logged it."""
        logs = list(self.logs)[-windows * self.spec.steps :]
        found = [log[name] for log in logs if is_finite(log.get(name))]
        return fmean(found) if found else None

    def above(self, name: str, limit: float) -> float | None:
        """The mean where it is above the limit."""
        found = self.mean(name)
        return found if found is not None and found > limit else None

    def noticed(self) -> Iterator[tuple[str, str]]:
        """What the last steps show, by the alarm's name."""
        longer = f"raise max_completion_length ({self.args.max_completion_length})"
        if calls := getattr(self.args, "max_tool_calling_iterations", None):
            longer += f" or max_tool_calling_iterations ({calls})"
        longer += f", or set {NO_THINKING}" if self.switch else ""
        cut, accuracy = self.mean("completions/clipped_ratio"), self.mean("accuracy")
        scored = self.mean("reward_std") or 0  # None: nothing was
        alike = "reward_std" in self.logs[-1] and not scored > ROUNDING
        zero = self.above("frac_reward_zero_std", most_zero_std(self.args.num_generations))
        zero = zero if self.baseline == "group" else None  # without a baseline, groups of equal rewards teach
        solved = accuracy is not None and accuracy > SOLVED
        if solved and (alike or zero):
            yield "solved", f"{accuracy:.0%} of the completions are right: stop the run, or use harder problems"
        elif alike:
            yield "reward", f"all completions got the same reward for {self.spec.steps} logs: {self.cause(cut, longer)}"
        elif zero:
            yield "zero_std", f"in {zero:.0%} of the groups all rewards are equal: {self.cause(cut, longer)}"
        if cut is not None and cut > MOST["truncated"]:
            yield "truncated", f"{cut:.0%} of the completions are truncated: {longer}"
        if late := self.above("grading/timeouts", MOST["timeouts"]):
            yield "timeouts", f"{late:.1%} of the answers took too long to grade: raise grading: {{timeout: 5.0}}"
        if (calls := self.mean("tools/call_frequency")) is not None:
            failed = self.above("tools/failure_frequency", MOST["failed"])
            if not calls:
                yield (
                    "tools",
                    "no completion calls a tool: ask for it in prompt_template, or run SFT on conversations first",
                )
            elif failed:
                yield "tools", f"{failed:.0%} of the tool calls fail: see why in the saved completions"
        if kl := self.above("kl", self.spec.kl):
            yield (
                "kl",
                f"KL {kl:.3g} from the reference model, above {self.spec.kl:g}: lower learning_rate, or raise beta",
            )
        ratio = self.mean("sampling/importance_sampling_ratio/mean")
        if ratio is not None and ratio < RATIO:
            yield "importance", self.other_policy(ratio)
        start, now = self.begin["entropy"], self.mean("entropy")
        stuck = self.above("frac_reward_zero_std", 0.5) and not solved  # low entropy alone is how healthy runs end
        if start and now is not None and now < COLLAPSE * start and stuck:
            yield (
                "entropy",
                f"fell from {start:.3g} to {now:.3g}, and most groups have equal rewards: raise epsilon_high (0.28) or "
                "temperature, or set entropy_coef: 0.001; then lower learning_rate",
            )
        start, now = self.begin["completions/mean_length"], self.mean("completions/mean_length")
        if start and now is not None and not start / DRIFT <= now <= start * DRIFT:
            yield "length", f"completions went from {start:.0f} to {now:.0f} tokens: read some to see what is rewarded"
        yield from self.spikes()
        yield from self.composition(solved)

    def cause(self, cut: float | None, longer: str) -> str:
        """Why all completions earn the same, and what to do."""
        accuracy, start, style = self.mean("accuracy"), self.begin["accuracy"], self.template.answer_style
        if start and accuracy is not None and accuracy < start / 2:
            return f"accuracy fell from {start:.2f} to {accuracy:.2f}, the policy collapsed: lower learning_rate"
        if unread := self.above("grading/unparsable_gold", 0.5):
            return f"{unread:.0%} of the golds cannot be parsed: see grpo-math check"
        if cut and cut > 0.9:
            return f"{cut:.0%} are truncated: {longer}"
        if absent := self.above("grading/no_answer", 0.9):
            fix = "add rewards: {format: {weight: 0.2}}, a worked example to the prompt, or SFT first"
            return f"{absent:.0%} have no answer in style {style}: {fix}"
        group, distinct = self.args.num_generations, self.mean("completions/distinct")
        if distinct and distinct < max(0.5, 1.5 / group):
            return (
                f"of {group} completions {distinct * group:.1f} are distinct: raise temperature, or lower learning_rate"
            )
        if accuracy is not None and accuracy < 0.1:
            return f"{accuracy:.0%} are right: use easier problems, dataset: {{pass_rate: ...}}, or SFT first"
        return "raise temperature or num_generations, or look at the rewards (grpo-math check)"

    def other_policy(self, ratio: float) -> str:
        """Why the importance sampling weights of vLLM's completions are not about 1."""
        if changed := changed_sampling(vars(self.args)):
            cut = ", ".join(f"{key}: {value}" for key, value in changed.items())
            return (
                f"the mean importance weight of vLLM's completions is {ratio:.2g}, expected 1: with {cut} vLLM's "
                "probabilities are over the kept tokens, the trainer's over all: sample from all tokens "
                "(top_p: 1.0), or set vllm_importance_sampling_correction: false"
            )
        return (
            f"vLLM's policy is not the trained one (ratio {ratio:.2f}, expected 1): leave vLLM's dtype unset, or "
            "lower learning_rate and steps_per_generation"
        )

    def spikes(self) -> Iterator[tuple[str, str]]:
        """Of the steps with signal: without one the gradient is 0, or as small as `beta`. Steps that generate nothing
        train on the generation before them."""
        level, norms = 0.0, []
        for log in list(self.logs)[-self.spec.steps :]:
            found = log.get("frac_reward_zero_std")
            level = level if found is None else found
            if is_finite(log.get("grad_norm")) and level < 1:
                norms.append(log["grad_norm"])
        usual = median(norms) if norms else 0.0
        high = [norm for norm in norms if norm > SPIKE * usual > 0]
        if len(high) >= SPIKES:
            yield (
                "spike",
                f"the gradient norm was above {SPIKE} times its median ({usual:.3g}) in {len(high)} of "
                f"{len(norms)} steps: lower learning_rate, or raise prompts_per_step",
            )

    def composition(self, solved: bool) -> Iterator[tuple[str, str]]:
        """Where rewards that know no solution decide which completion of a group is better. At the beginning they may:
        a format is learned before the first right answer, which has to come first here."""
        logged = [re.fullmatch("rewards/(.+)/variance_share", key) for key in self.logs[-1]]
        shares = {
            name: share
            for name in (key[1] for key in logged if key)
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
                f"{most}, which does not read the solution, is {shares[most]:.2f} of the reward variance within groups "
                f"(all entries sum to 1): lower its weight, or set gate: {self.graded[0]}",
            )

    def diverged(self) -> Iterator[tuple[str, str]]:
        """The last evaluations are below the interval of the best one, and the reward is higher than after it."""
        if not self.held_out:
            return
        step, accuracy, low = max(self.held_out, key=itemgetter(1))
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
                f"{accuracy:.3f} to {later[-1][1]:.3f} in {len(later)} evaluations: the rewards favour something else, "
                f"the model of step {step} is {model}",
            )
