"""Rewards: plain functions, chosen and weighted in the recipe.

A reward function takes TRL's keyword arguments (`completions`, `prompts`, `completion_ids`, every dataset column,
`trainer_state`, `log_metric`, ...) and returns one float a completion, or None where a completion cannot be scored
(TRL then leaves it out of its group). Parameters given in the recipe are its keyword parameters. A function that names
`template` in its signature gets the run's `PromptTemplate`, and one that names `grades` the batch's verdicts.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from grpo_math.errors import RewardError, UserError
from grpo_math.functions import load_function, parameters
from grpo_math.grading import Grade, grade_batch, well_formed
from grpo_math.prompts import PromptTemplate

logger = logging.getLogger(__name__)


def text(completion: str | list[dict]) -> str:
    """The text of a completion, plain or conversational."""
    return completion if isinstance(completion, str) else completion[0]["content"]


@functools.lru_cache(maxsize=2)
def graded(texts: tuple[str, ...], golds: tuple[str, ...], style: str) -> list[Grade]:
    """The verdicts of a batch, made once for all rewards that read them."""
    grades = grade_batch(list(texts), list(golds), style)
    if late := sum(grade.how in ("timeout", "crashed") for grade in grades):
        logger.warning("grading: %d of %d answers took too long or too much memory: wrong", late, len(grades))
    return grades


def correctness(completions: list, grades: list[Grade], log_metric: Callable | None = None, **_) -> list[float | None]:
    """1.0 where the answer equals the solution, else 0.0; None where the solution itself cannot be read.

    Logs `accuracy`, the share of right ones among the readable, and of all completions the shares
    `grading/no_answer`, `grading/timeouts` and `grading/unparsable_gold`, all in [0, 1].
    """
    known = [grade.correct for grade in grades if grade.correct is not None]
    if log_metric:
        if known:
            log_metric("accuracy", sum(known) / len(known))
        for name, hows in LOGGED.items():
            log_metric(f"grading/{name}", sum(grade.how in hows for grade in grades) / len(grades))
    return [None if grade.correct is None else float(grade.correct) for grade in grades]


def format(completions: list, template: PromptTemplate, **_) -> list[float]:
    """1.0 where the whole completion is in the template's answer style, else 0.0; right or wrong does not matter."""
    return [
        float(well_formed(template.full_text(text(completion)), template.answer_style)) for completion in completions
    ]


LOGGED = {
    "no_answer": {"no_answer"},
    "timeouts": {"timeout", "crashed"},
    "unparsable_gold": {"unparsable_gold"},
}
REWARDS = {"correctness": correctness, "format": format}


@dataclass(frozen=True)
class RewardSpec:
    """One entry of `rewards:`. Without `path` the name is that of a shipped function."""

    name: str
    path: str | None = None
    weight: float = 1.0
    params: dict = field(default_factory=dict)


@dataclass
class Reward:
    """A reward function under the entry's name, with its parameters bound and its output checked."""

    name: str
    function: Callable
    params: dict
    template: PromptTemplate

    def __post_init__(self):
        self.__name__ = self.name  # TRL's metric: rewards/<name>/mean

    def __call__(self, prompts: list, completions: list, **columns) -> list[float | None]:
        count = len(completions)
        named = parameters(self.function)
        if "template" in named:
            columns["template"] = self.template
        if "grades" in named:
            texts = tuple(self.template.full_text(text(completion)) for completion in completions)
            columns["grades"] = graded(texts, tuple(columns["solution"]), self.template.answer_style)
        try:
            scores = self.function(prompts=prompts, completions=completions, **{**columns, **self.params})
            if isinstance(scores, Iterator):
                scores = list(scores)
        except UserError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward {self.name}: raised {type(error).__name__}: {error}; first of its {count} "
                f"completions: {text(completions[0])!r:.200}. Mend the function, or take it out of rewards"
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
                    f"reward {self.name}: returned {score!r:.80} for the completion {text(completion)!r:.200}: "
                    "return a finite float, or None where it cannot be scored"
                )
        return [None if score is None else float(score) for score in scores]


def is_finite_number(score) -> bool:
    """Whether TRL can use it: int, float, bool, or a NumPy or torch scalar; no text, no NaN, no infinity."""
    try:
        return not isinstance(score, str | bytes) and math.isfinite(score)
    except (TypeError, ValueError, OverflowError):
        return False


def build_rewards(specs: list[RewardSpec], template: PromptTemplate) -> list[Reward]:
    """The reward functions of a recipe, in its order; raises UserError for a function that cannot be imported."""
    functions = [load_function(spec.path) if spec.path else REWARDS[spec.name] for spec in specs]
    return [Reward(spec.name, function, spec.params, template) for spec, function in zip(specs, functions, strict=True)]
