"""From the recipe's `rewards:` to the functions TRL calls: parameters bound, gated, scaled, their output checked.

A reward function takes TRL's keyword arguments (`completions`, `prompts`, `completion_ids`, every dataset column,
`trainer_state`, `log_metric`, ...) and returns one float a completion, or None where a completion cannot be scored
(TRL then leaves it out of its group). Parameters given in the recipe are its keyword parameters. A function that names
`template`, `grades` or `max_completion_length` in its signature gets the run's `PromptTemplate`, the batch's verdicts,
or the longest completion in tokens.
"""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from grpo_math.errors import RewardError, UserError
from grpo_math.functions import load_function, parameters
from grpo_math.grading import Grade, grade_batch
from grpo_math.prompts import PromptTemplate, completion_text
from grpo_math.reward_library import LATE, REWARDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardSpec:
    """One entry of `rewards:`. Without `path` or `reward_model` the name is that of a shipped function.

    The entry is worth `weight * (scale * score + bias)`. Where the entry that `gate` names scores 0 or less, this one's
    score is no more than 0: it earns nothing, but what it takes away it still takes.
    """

    name: str
    path: str | None = None
    reward_model: str | None = None
    weight: float = 1.0
    scale: float = 1.0
    bias: float = 0.0
    gate: str | None = None
    params: dict = field(default_factory=dict)


@functools.lru_cache(maxsize=2)
def graded(texts: tuple[str, ...], golds: tuple[str, ...], style: str) -> list[Grade]:
    """The verdicts of a batch, made once for all rewards that read them."""
    grades = grade_batch(list(texts), list(golds), style)
    if late := sum(grade.how in LATE for grade in grades):
        logger.warning("grading: %d of %d answers took too long or too much memory: wrong", late, len(grades))
    return grades


@dataclass
class Reward:
    """A reward function under the entry's name."""

    name: str
    function: Callable
    params: dict
    template: PromptTemplate
    max_completion_length: int
    scale: float = 1.0
    bias: float = 0.0
    gate: "Reward | None" = None

    def __post_init__(self):
        self.__name__ = self.name  # TRL's metric: rewards/<name>/mean

    def __call__(self, /, prompts: list, completions: list, **columns) -> list[float | None]:
        scores = self.scores(prompts, completions, **columns)
        if self.gate:
            quiet = {name: lambda *_: None for name in ("log_metric", "log_extra")}
            earned = self.gate.scores(prompts, completions, **columns | quiet)
            scores = [gated(score, key) for score, key in zip(scores, earned, strict=True)]
        return [None if score is None else self.scale * score + self.bias for score in scores]

    def scores(self, /, prompts: list, completions: list, **columns) -> list[float | None]:
        """What the function itself gives, checked: before gate, scale and bias."""
        count = len(completions)
        named = parameters(self.function)
        if "template" in named:
            columns["template"] = self.template
        if "max_completion_length" in named:
            columns["max_completion_length"] = self.max_completion_length
        if "grades" in named:
            texts = tuple(self.template.full_text(completion_text(completion)) for completion in completions)
            columns["grades"] = graded(texts, tuple(columns["solution"]), self.template.answer_style)
        given = {"prompts": prompts, "completions": completions, **columns, **self.params}
        if not takes_everything(self.function):
            given = {name: value for name, value in given.items() if name in named}
        try:
            scores = self.function(**given)
            if isinstance(scores, Iterator):
                scores = list(scores)
        except UserError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward {self.name}: raised {type(error).__name__}: {error}; first of its {count} "
                f"completions: {completion_text(completions[0])!r:.200}. Mend the function, or take it out of rewards"
            ) from error
        return self.checked(scores, completions, count)

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


def build_rewards(
    specs: list[RewardSpec], template: PromptTemplate, max_completion_length: int = 512
) -> list[Reward | str]:
    """The rewards of a recipe, in its order: functions, and the paths or ids of reward models.

    Raises UserError for a function that cannot be imported.
    """
    built: dict[str, Reward | str] = {}
    for spec in specs:
        if spec.reward_model:
            built[spec.name] = spec.reward_model
            continue
        function = load_function(spec.path) if spec.path else REWARDS[spec.name]
        # A shipped reward's settings are bound, defaults too: a data column of such a name is not meant.
        params = spec.params if spec.path else settings(function) | spec.params
        built[spec.name] = Reward(spec.name, function, params, template, max_completion_length, spec.scale, spec.bias)
    for spec in specs:
        if spec.gate:
            built[spec.name].gate = built[spec.gate]
    return list(built.values())
