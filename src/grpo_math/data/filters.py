"""Filters: why a training problem is dropped. Each takes problems and gives a reason for each, or None to keep it."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.data.problem import PassRateSpec, Problem
from grpo_math.data.prompts import PromptTemplate, prompt_lengths
from grpo_math.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Filter = Callable[[list[Problem]], list[str | None]]
PassRates = dict[tuple[str, str], float]  # by question and gold

WORDS = 8
TEST_PROBLEM, TEST_WORDS = "that are test problems", f"with {WORDS} words in a row of a test problem"


def too_long(template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int) -> Filter:
    """Drops prompts of more than `max_prompt_tokens` tokens, chat template included."""

    def reasons(problems: list[Problem]) -> list[str | None]:
        lengths = prompt_lengths(problems, template, tokenizer)
        return [f"over {max_prompt_tokens} prompt tokens" if n > max_prompt_tokens else None for n in lengths]

    return reasons


def outside_pass_rates(spec: PassRateSpec, rates: PassRates) -> Filter:
    """Drops problems whose pass rate is outside the range, or unknown."""

    def reason(problem: Problem) -> str | None:
        rate = rates.get((problem.question, problem.answer))
        if rate is None:
            return f"without a pass rate in {spec.file}"
        if rate < spec.min:
            return f"with a pass rate below {spec.min:g}"
        return f"with a pass rate above {spec.max:g}" if rate > spec.max else None

    return lambda problems: [reason(problem) for problem in problems]


def require_advantages(
    problems: list[Problem], spec: PassRateSpec, rates: PassRates, group: int | None, where: str
) -> None:
    """Raise UserError where too few groups of so many completions can teach (None: there are no groups).

    A group whose completions are all right or all wrong has no advantage. With pass rate p it has one with a
    probability of 1 - p^group - (1 - p)^group; the mean over the problems is compared with `require`.
    """
    if group is None:
        raise UserError(f"{where}pass_rate.require: SFT has no groups: leave it out")
    found = [rates[problem.question, problem.answer] for problem in problems]
    shares = [1 - rate**group - (1 - rate) ** group for rate in found]
    if (share := sum(shares) / len(shares)) >= spec.require:
        return
    between = [one for one, rate in zip(shares, found, strict=True) if 0 < rate < 1]
    fix = "take easier or harder problems, or SFT first"
    if between and sum(between) / len(between) >= spec.require:
        fix = f"pass_rate: {{min: 0.01, max: 0.99}} keeps the {len(between):,} between"
    raise UserError(
        f"{where}pass_rate.require: {share:.2g} of the groups (num_generations {group}) have an advantage on "
        f"average, expected at least {spec.require:g}: of {len(found):,} problems {found.count(0):,} are never right "
        f"and {found.count(1):,} always: {fix}"
    )


def read_pass_rates(file: str, where: str) -> PassRates:
    """The share of right completions by question and gold, in the files of an evaluation."""
    path = Path(os.path.expanduser(file))
    path = path / "completions.jsonl" if path.is_dir() else path
    fix = "create it with grpo-math evaluate --config R --split train --samples 8 --temperature 1 --out FOLDER"
    if not path.is_file():
        raise UserError(f"{where}pass_rate.file: no file {path}: {fix}")
    correct = defaultdict(list)
    wrong = one_line(
        f"{where}pass_rate.file: {path} holds no graded completions", fix, (ValueError, LookupError, TypeError)
    )
    with wrong, path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            correct[row["question"], row["gold"]].append(row["correct"] is True)
    return {key: sum(found) / len(found) for key, found in correct.items()}


class Overlap:
    """Finds training problems that are test problems (the same words), or share a run of eight words with one.

    Brown et al. 2020 (arXiv:2005.14165, appendix C) look for runs of 8 to 13 words; eight is what open reproductions
    of R1 take. Words are runs of letters and digits, without case; where all words are the same, signs count too.
    Templated word problems share such runs without being copies, so the two are counted apart.
    """

    def __init__(self, tests: list[Problem]):
        self.whole = {whole(problem.question) for problem in tests}
        self.runs = {run for problem in tests for run in runs(problem.question)}

    def reason(self, problem: Problem) -> str | None:
        if whole(problem.question) in self.whole:
            return TEST_PROBLEM
        return None if self.runs.isdisjoint(runs(problem.question)) else TEST_WORDS

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        return [self.reason(problem) for problem in problems]


def whole(question: str) -> tuple[str, ...]:
    """The question without case, blanks and sentence marks; signs and decimal points stay."""
    return tuple(re.findall(r"\d+(?:[.,]\d+)*|\w+|[^\w\s.,;:?!'\"]", question.lower()))


def runs(question: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", question.lower())
    return zip(*(words[start:] for start in range(WORDS)), strict=False)


def first_reasons(problems: list[Problem], filters: Sequence[Filter]) -> list[str | None]:
    """The reason of the first filter that has one; each filter sees what those before it keep."""
    reasons: list[str | None] = [None] * len(problems)
    for part in filters:
        left = [place for place, reason in enumerate(reasons) if not reason]
        for place, reason in zip(left, part([problems[place] for place in left]), strict=True):
            reasons[place] = reason
    return reasons
