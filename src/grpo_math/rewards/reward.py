"""From the recipe's `rewards:` to the functions TRL calls: settings bound, gated, scaled, their output checked.

A reward function takes TRL's keyword arguments (`completions`, `prompts`, `completion_ids`, every dataset column,
`trainer_state`, `log_metric`, ...) and returns one float per completion, or None where a completion cannot be scored
(TRL then leaves it out of its group). Settings given in the recipe are its keyword parameters. A function that names
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
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from grpo_math.data import Problem, PromptTemplate, completion_text, meta_columns
from grpo_math.data.functions import load_function, parameters
from grpo_math.errors import RewardError, UserError, raised, suggestion
from grpo_math.grading import Grade, grade_batch
from grpo_math.rewards.library import FAILED, REWARDS
from grpo_math.rewards.waiting import Late, call, in_thread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerState

GIVEN = {  # to every reward function that names them, by TRL and by us
    "prompts", "completions", "completion_ids", "log_metric", "log_extra", "template", "grades",
    "max_completion_length",
}  # fmt: skip
TELLING = {"prompts", "question", "solution", "worked", "grades"}  # parameters that may tell what is right
logger = logging.getLogger(__name__)
grading = threading.Lock()  # rewards in several threads want the same verdicts


class RewardSpec(BaseModel):
    """One entry of `rewards:`. Without `path` or `reward_model` the name is that of a shipped function.

    The entry is worth `weight * (scale * score + bias)`. Where the entry that `gate` names scores 0 or less, a positive
    score counts as 0; a negative one stays. `timeout` is the deadline of one call, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    path: str | None = Field(default=None, description="a function of your own, FILE.py:FUNCTION")
    reward_model: str | None = Field(default=None, description="a reward model, by folder or Hub id")
    weight: float = Field(default=1.0, description="the reward is weight * (scale * score + bias)")
    scale: float = Field(default=1.0, description="multiplies the score")
    bias: float = Field(default=0.0, description="added to the scaled score")
    gate: str | None = Field(default=None, description="this one scores above 0 only if the entry named here does")
    timeout: float | None = Field(default=None, gt=0, description="the time limit of one call, in seconds; null: none")
    params: dict[str, Any] = {}


@functools.lru_cache(maxsize=2)
def grades_of(texts: tuple[str, ...], golds: tuple[str, ...], style: str) -> list[Grade]:
    """The verdicts of a batch, made once for all rewards that read them."""
    grades = grade_batch(list(texts), list(golds), style)
    if failed := sum(grade.how in FAILED.values() for grade in grades):
        logger.warning("grading: %d of %d answers timed out or crashed the grader: wrong", failed, len(grades))
    return grades


def log_nothing(*_: object) -> None:
    """In place of TRL's log_metric and log_extra."""


@dataclass
class Reward:
    """A reward function under its entry's name. A call waits for an async one, too; see `for_trl`."""

    spec: RewardSpec
    function: Callable
    params: dict
    template: PromptTemplate
    max_completion_length: int
    skip: bool = False  # where it fails, instead of stopping the run
    gate: "Reward | None" = None
    known: tuple[list, list] | None = field(default=None, init=False, repr=False, compare=False)  # its last batch

    def __post_init__(self):
        self.__name__ = self.spec.name  # TRL's metric: rewards/<name>/mean

    @property
    def graded(self) -> bool:
        """Whether its score may depend on the solution, also as a judge of the question or by a column of the data."""
        named = (parameters(self.function).keys() & TELLING) | self.missing({"trainer_state"})
        unseen = self.spec.path is not None and takes_everything(self.function)
        return bool(named) or unseen or (self.gate is not None and self.gate.graded)

    def __call__(self, /, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        scores = self.scores(prompts, completions, **columns)
        self.known = completions, scores
        if self.gate:
            keys = self.gate.recalled(prompts, completions, **columns)
            scores = [gated(score, key) for score, key in zip(scores, keys, strict=True)]
        return [None if score is None else self.spec.scale * score + self.spec.bias for score in scores]

    def recalled(self, /, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """The scores for the entries it gates: those of the last call, or of a call that logs nothing."""
        if self.known and self.known[0] is completions:
            return self.known[1]
        return self.scores(prompts, completions, **columns | dict.fromkeys(("log_metric", "log_extra"), log_nothing))

    def missing(self, there: AbstractSet[str]) -> set[str]:
        """What it cannot be called without where the rows have the columns `there`."""
        signature = inspect.signature(self.function).parameters
        wanted = {name for name in parameters(self.function) if signature[name].default is inspect.Parameter.empty}
        return wanted - there - GIVEN - self.params.keys()

    def scores(
        self, /, prompts: list, completions: list, log_metric: Callable = log_nothing, **columns: Any
    ) -> list[float | None]:
        """The function's own scores, checked: before gate, scale and bias.

        Where it fails and failures are skipped, it is called again group by group, and the groups on which it still
        fails, or all where it was late, have no score. Their share is `rewards/NAME/failed`.
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
                    scores[group] = self.asked(**part_of(given, group, len(prompts)), log_metric=log_nothing)
                    failed -= group.stop - group.start
            logger.warning("warning: skipped %d of %d completions: %s", failed, len(completions), error)
        log_metric(f"rewards/{self.spec.name}/failed", failed / len(completions))
        return scores

    def asked(self, /, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One call. Raises RewardError, with the batch it was given, where the function fails. Verdicts that are known,
        as an evaluation's are, come as `grades`."""
        named, cause, known = parameters(self.function), None, columns.pop("grades", None)
        if "template" in named:
            columns["template"] = self.template
        if "max_completion_length" in named:
            columns["max_completion_length"] = self.max_completion_length
        if "grades" in named and known:
            columns["grades"] = known
        elif "grades" in named:
            texts = tuple(self.template.full_text(completion_text(completion)) for completion in completions)
            with grading:
                columns["grades"] = grades_of(texts, tuple(columns["solution"]), self.template.answer_style)
        given = {"prompts": prompts, "completions": completions, **columns, **self.params}
        if not takes_everything(self.function):
            given = {name: value for name, value in given.items() if name in named}
        try:
            scores = call(self.function, given, self.spec.timeout)
            wrong = wrong_with(scores, completions)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            late = f"took longer than its timeout of {self.spec.timeout} s"
            logger.debug("reward %s failed", self.spec.name, exc_info=error)
            cause, wrong = error, late if isinstance(error, Late) else f"raised {raised(error)}"
            wrong += f"; first of its {len(completions)} completions: {completions[0]!r:.200}. "
            wrong += "Fix the function, or remove it from rewards"
        if not wrong:
            return [None if score is None else float(score) for score in scores]
        failed = RewardError(f"reward {self.spec.name}: {wrong}")
        own = {name: column for name, column in columns.items() if is_column(column, len(prompts)) and name != "grades"}
        own = {"prompt": prompts, "completion": completions, **own}
        failed.batch = {
            "reward": self.spec.name,
            "error": "".join(traceback.format_exception(cause or failed)),
            "completions": [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)],
        }
        raise failed from cause


def wrong_with(scores: Any, completions: list) -> str | None:
    """Why TRL cannot use what a reward function returned, and what to return; None where it can."""
    if isinstance(scores, str | dict | set) or not hasattr(scores, "__len__"):
        return f"returned {scores!r:.80}: return a list of floats"
    if len(scores) != len(completions):
        return (
            f"returned {len(scores)} scores for {len(completions)} completions: return one per completion, in order "
            "(None where one cannot be scored)"
        )
    for score, completion in zip(scores, completions, strict=True):
        if score is not None and not is_finite_number(score):
            return (
                f"returned {score!r:.80} for the completion {completion_text(completion)!r:.200}: return a finite "
                "float, or None where it cannot be scored"
            )
    return None


def is_finite_number(score: Any) -> bool:
    """Whether TRL can use it: int, float, bool, or a NumPy or torch scalar; no text, no NaN, no infinity."""
    try:
        return not isinstance(score, str | bytes) and math.isfinite(score)
    except (TypeError, ValueError, OverflowError):
        return False


def is_column(values: Any, count: int) -> bool:
    """Whether this is a list with one value per completion."""
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
    """The score where the gate's is positive; otherwise no more than 0."""
    if score is None or key is None:
        return None
    return score if key > 0 else min(score, 0.0)


def settings(function: Callable) -> dict:
    """The settings of a shipped reward with their defaults: its keyword-only parameters."""
    named = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in named if parameter.kind is parameter.KEYWORD_ONLY}


def own_function(spec: RewardSpec, path: str) -> Callable:
    function = load_function(path)
    if inspect.isclass(function):
        raise UserError(f"rewards.{spec.name}.path: {path} is a class: name an instance of it, created in that file")
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
    built: dict[str, Reward] = {}
    for spec in specs:
        if spec.reward_model:
            continue
        function = own_function(spec, spec.path) if spec.path else REWARDS[spec.name]
        # A shipped reward's settings are bound, defaults too: a data column of such a name is not meant.
        params = spec.params if spec.path else settings(function) | spec.params
        built[spec.name] = Reward(spec, function, params, template, max_completion_length, skip)
    for reward in built.values():
        reward.gate = built[reward.spec.gate] if reward.spec.gate else None
    return [spec.reward_model or built[spec.name] for spec in specs]


def graded_names(specs: Sequence[RewardSpec], rewards: Sequence[Reward | str]) -> list[str]:
    """The entries whose scores may depend on the solution, reward models too; those that can be a gate first."""
    pairs = sorted(zip(specs, rewards, strict=True), key=lambda pair: bool(pair[0].gate or pair[0].reward_model))
    return [spec.name for spec, reward in pairs if isinstance(reward, str) or reward.graded]


def data_columns(rewards: list[Reward | str], problems: list[Problem], every: bool = False) -> tuple[set[str], str]:
    """The further columns of the data that the rewards get, and a line on those that they do not get: no table holds
    them. These are the columns that a reward names, and all where one of your own takes `**kwargs`, or with `every`.

    Raises UserError where a reward names a column that no table holds.
    """
    import pyarrow

    ours = [reward for reward in rewards if isinstance(reward, Reward)]
    there = meta_columns(problems)
    named = {name for reward in ours for name in parameters(reward.function) if name not in reward.params}
    if not every and not any(reward.spec.path and takes_everything(reward.function) for reward in ours):
        there &= named
    odd = []
    for name in sorted(there):
        try:
            pyarrow.array([problem.meta.get(name) for problem in problems])
        except (ArithmeticError, TypeError, ValueError, pyarrow.ArrowException) as error:
            if name in named:
                raise UserError(f"dataset: a reward reads the column {name}: {error}: make it one type") from error
            odd.append(name)
    said = f"the rewards do not get {', '.join(odd)}: the values have several types, or are too large"
    return there - {*odd}, said if odd else ""


def call_arguments(
    completions: Sequence[str | list[dict]],
    rows: list[dict],
    tokenizer: "PreTrainedTokenizerBase | None",
    state: "TrainerState | None" = None,
    lengths: list[int] | None = None,
) -> dict[str, Any]:
    """What TRL would call a reward with for these completions, texts or messages, of the rows; nothing is logged.

    `completion_ids` are the texts' own tokens and the end token, where `lengths` (in tokens) are known cut or filled to
    them: a sampled completion may have been written with other tokens. Without a tokenizer there are none.
    """
    chat, texts = isinstance(rows[0]["prompt"], list), [completion_text(one) for one in completions]
    told = [[{"role": "assistant", "content": one}] if isinstance(one, str) else one for one in completions]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    if tokenizer:
        ids, end = tokenizer(texts, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
        lengths = lengths or [len(some) + 1 for some in ids]
        columns["completion_ids"] = [(some + [end] * most)[:most] for some, most in zip(ids, lengths, strict=True)]
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": told if chat else texts,
        "trainer_state": state,
        "log_metric": log_nothing,
        "log_extra": log_nothing,
        **columns,
    }


def for_trl(reward: Any) -> Any:
    """The reward as TRL calls it: an async one as a coroutine function, which TRL runs concurrently.

    All that Reward does happens in a thread, so that blocking calls, such as grading, do not delay others. Anything
    else than a Reward (a loaded model) is returned unchanged.
    """
    from trl.trainer.utils import is_async_callable

    if not (isinstance(reward, Reward) and is_async_callable(reward.function)):
        return reward

    async def called_by_trl(**given: Any) -> list[float | None]:
        return await in_thread(reward, **given)

    called_by_trl.__name__ = reward.spec.name
    return called_by_trl
