"""From the recipe's `rewards:` to the functions TRL calls: parameters bound, gated, scaled, their output checked.

A reward function takes TRL's keyword arguments (`completions`, `prompts`, `completion_ids`, every dataset column,
`trainer_state`, `log_metric`, ...) and returns one float a completion, or None where a completion cannot be scored
(TRL then leaves it out of its group). Parameters given in the recipe are its keyword parameters. A function that names
`template`, `grades` or `max_completion_length` in its signature gets the run's `PromptTemplate`, the batch's verdicts,
or the longest completion in tokens. It may be `async def`, or a callable instance.
"""

import contextlib
import functools
import inspect
import itertools
import logging
import math
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from grpo_math.data.functions import load_function, parameters
from grpo_math.data.prompts import PromptTemplate, completion_text
from grpo_math.errors import RewardError, UserError, suggestion
from grpo_math.grading import Grade, grade_batch
from grpo_math.rewards.deadline import Late, deadline
from grpo_math.rewards.library import FAILED, REWARDS
from grpo_math.rewards.waiting import in_thread, result

logger = logging.getLogger(__name__)
grading = threading.Lock()  # rewards in several threads want the same verdicts


@dataclass(frozen=True)
class RewardSpec:
    """One entry of `rewards:`. Without `path` or `reward_model` the name is that of a shipped function.

    The entry is worth `weight * (scale * score + bias)`. Where the entry that `gate` names scores 0 or less, this one's
    score is no more than 0: it earns nothing, but what it takes away it still takes. `timeout` is the deadline of one
    call, in seconds (deadline.py).
    """

    name: str
    path: str | None = None
    reward_model: str | None = None
    weight: float = 1.0
    scale: float = 1.0
    bias: float = 0.0
    gate: str | None = None
    timeout: float | None = None
    params: dict = field(default_factory=dict)


@functools.lru_cache(maxsize=2)
def graded(texts: tuple[str, ...], golds: tuple[str, ...], style: str) -> list[Grade]:
    """The verdicts of a batch, made once for all rewards that read them."""
    grades = grade_batch(list(texts), list(golds), style)
    if failed := sum(grade.how in FAILED.values() for grade in grades):
        logger.warning("grading: %d of %d answers took too long, or made the grader fail: wrong", failed, len(grades))
    return grades


def nothing(*_) -> None:
    """In place of TRL's log_metric."""


@dataclass
class Reward:
    """A reward function under the entry's name. A call waits for an async one, too; see `for_trl`."""

    name: str
    function: Callable
    params: dict
    template: PromptTemplate
    max_completion_length: int
    scale: float = 1.0
    bias: float = 0.0
    gate: "Reward | None" = None
    timeout: float | None = None
    skip: bool = False  # what it fails on, instead of stopping
    known: tuple[list, list] | None = field(default=None, init=False, repr=False, compare=False)  # its last batch

    def __post_init__(self):
        self.__name__ = self.name  # TRL's metric: rewards/<name>/mean

    def __call__(self, /, prompts: list, completions: list, **columns) -> list[float | None]:
        scores = self.scores(prompts, completions, **columns)
        self.known = completions, scores
        if self.gate:
            earned = self.gate.recalled(prompts, completions, **columns)
            scores = [gated(score, key) for score, key in zip(scores, earned, strict=True)]
        return [None if score is None else self.scale * score + self.bias for score in scores]

    def recalled(self, /, prompts: list, completions: list, **columns) -> list[float | None]:
        """The scores for those that it gates: those it has just given, or it is asked, and logs nothing."""
        if self.known and self.known[0] is completions:
            return self.known[1]
        return self.scores(prompts, completions, **columns | dict.fromkeys(("log_metric", "log_extra"), nothing))

    def scores(self, /, prompts: list, completions: list, log_metric: Callable = nothing, **columns):
        """What the function itself gives, checked: before gate, scale and bias.

        Where it fails and failures are skipped, it is asked again group by group, and those on which it still fails, or
        all if it was late, cannot be scored. Their share is `rewards/NAME/failed`.
        """
        given = {"prompts": prompts, "completions": completions, **columns}
        if not self.skip:
            return self.asked(**given, log_metric=log_metric)
        try:
            scores, failed = self.asked(**given, log_metric=log_metric), 0
        except RewardError as error:
            groups = [] if isinstance(error.__cause__, Late) else groups_of(prompts)
            scores, failed = [None] * len(completions), len(completions)
            for group in groups if len(groups) > 1 else ():
                with contextlib.suppress(RewardError):
                    scores[group] = self.asked(**part_of(given, group, len(prompts)), log_metric=nothing)
                    failed -= group.stop - group.start
            logger.warning("warning: skipped %d of %d completions: %s", failed, len(completions), error)
        log_metric(f"rewards/{self.name}/failed", failed / len(completions))
        return scores

    def asked(self, /, prompts: list, completions: list, **columns) -> list[float | None]:
        """One call. Raises RewardError where it fails, with what it was given."""
        named = parameters(self.function)
        if "template" in named:
            columns["template"] = self.template
        if "max_completion_length" in named:
            columns["max_completion_length"] = self.max_completion_length
        if "grades" in named:
            texts = tuple(self.template.full_text(completion_text(completion)) for completion in completions)
            with grading:
                columns["grades"] = graded(texts, tuple(columns["solution"]), self.template.answer_style)
        given = {"prompts": prompts, "completions": completions, **columns, **self.params}
        if not takes_everything(self.function):
            given = {name: value for name, value in given.items() if name in named}
        try:
            return self.checked(self.called(given, completions), completions, len(completions))
        except RewardError as error:
            error.batch = self.batch_of(prompts, completions, columns, error.__cause__ or error)
            raise

    def called(self, given: dict, completions: list):
        """What the function returns for these arguments, in its time."""
        try:
            with deadline(self.timeout):
                scores = self.function(**given)
                if inspect.isawaitable(scores):
                    scores = result(scores, self.timeout)
                return list(scores) if isinstance(scores, Iterator) else scores
        except UserError:
            raise
        except (Exception, Late) as error:
            what = f"raised {type(error).__name__}: {error}"
            if isinstance(error, Late):
                what = f"took longer than its timeout of {self.timeout:g} s"
            raise RewardError(
                f"reward {self.name}: {what}; first of its {len(completions)} completions: "
                f"{completions[0]!r:.200}. Mend the function, or take it out of rewards"
            ) from error

    def batch_of(self, prompts: list, completions: list, columns: dict, error: BaseException) -> dict:
        """What to look at where the function failed: its error, and all that it was given of each completion."""
        own = {name: column for name, column in columns.items() if is_column(column, len(prompts)) and name != "grades"}
        own = {"prompt": prompts, "completion": completions, **own}
        return {
            "reward": self.name,
            "error": "".join(traceback.format_exception(error)),
            "completions": [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)],
        }

    def checked(self, scores, completions: list, count: int) -> list[float | None]:
        if isinstance(scores, str | dict | set) or not hasattr(scores, "__iter__"):
            raise RewardError(f"reward {self.name}: returned {scores!r:.80}: return a list of floats")
        scores = list(scores)
        if len(scores) != count:
            raise RewardError(
                f"reward {self.name}: returned {len(scores)} scores for {count} completions: "
                "return one a completion, in order (None where one cannot be scored)"
            )
        for score, completion in zip(scores, completions, strict=True):
            if score is not None and not is_finite_number(score):
                raise RewardError(
                    f"reward {self.name}: returned {score!r:.80} for the completion "
                    f"{completion_text(completion)!r:.200}: return a finite float, or None where it cannot be scored"
                )
        return [None if score is None else float(score) for score in scores]


def is_column(values, count: int) -> bool:
    return isinstance(values, list) and len(values) == count


def groups_of(prompts: list) -> list[slice]:
    """Completions of one prompt are adjacent."""
    starts = [place for place, prompt in enumerate(prompts) if place == 0 or prompt != prompts[place - 1]]
    return [slice(start, stop) for start, stop in itertools.pairwise([*starts, len(prompts)])]


def part_of(given: dict, part: slice, count: int) -> dict:
    return {name: values[part] if is_column(values, count) else values for name, values in given.items()}


def takes_everything(function: Callable) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(function).parameters.values())


def gated(score: float | None, key: float | None) -> float | None:
    """The score where the gate earned something; otherwise only what it takes away."""
    if score is None or key is None:
        return None
    return score if key > 0 else min(score, 0.0)


def is_finite_number(score) -> bool:
    """Whether TRL can use it: int, float, bool, or a NumPy or torch scalar; no text, no NaN, no infinity."""
    try:
        return not isinstance(score, str | bytes) and math.isfinite(score)
    except (TypeError, ValueError, OverflowError):
        return False


def settings(function: Callable) -> dict:
    """The settings of a shipped reward with their defaults: its keyword-only parameters."""
    named = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in named if parameter.kind is parameter.KEYWORD_ONLY}


def own_function(spec: RewardSpec) -> Callable:
    function = load_function(spec.path)
    if inspect.isclass(function):
        raise UserError(f"rewards.{spec.name}.path: {spec.path} is a class: name an instance of it, made in that file")
    named = list(parameters(function))
    unknown = [key for key in spec.params if key not in named]
    if unknown and not takes_everything(function):
        raise UserError(f"rewards.{spec.name}.{unknown[0]}: unknown key, {suggestion(unknown[0], named, '', {})}")
    return function


def build_rewards(
    specs: list[RewardSpec], template: PromptTemplate, max_completion_length: int = 512, skip: bool = False
) -> list[Reward | str]:
    """The rewards of a recipe, in its order: functions, and the paths or ids of reward models.

    Raises UserError for a function that cannot be imported, or that has no such parameter.
    """
    built: dict[str, Reward | str] = {}
    for spec in specs:
        if spec.reward_model:
            built[spec.name] = spec.reward_model
            continue
        function = own_function(spec) if spec.path else REWARDS[spec.name]
        # A shipped reward's settings are bound, defaults too: a data column of such a name is not meant.
        params = spec.params if spec.path else settings(function) | spec.params
        built[spec.name] = Reward(
            spec.name,
            function,
            params,
            template,
            max_completion_length,
            scale=spec.scale,
            bias=spec.bias,
            timeout=spec.timeout,
            skip=skip,
        )
    for spec in specs:
        if spec.gate:
            built[spec.name].gate = built[spec.gate]
    return list(built.values())


def for_trl(reward):
    """The reward as TRL shall call it: an async one as a coroutine function, which TRL runs beside the others.

    All that Reward does happens in a thread, so that what blocks there, such as grading, holds up nobody. What is no
    Reward (a loaded model) stays as it is.
    """
    from trl.trainer.utils import is_async_callable

    if not (isinstance(reward, Reward) and is_async_callable(reward.function)):
        return reward

    async def called_by_trl(**given) -> list[float | None]:
        return await in_thread(reward, **given)

    called_by_trl.__name__ = reward.name
    return called_by_trl
