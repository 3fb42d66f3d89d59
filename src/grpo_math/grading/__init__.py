"""From a completion to a verdict: find the answer, compare it with the gold, keep the evidence.

Imports neither torch nor trl nor transformers; math_verify is imported only by the worker processes.
"""

from dataclasses import dataclass

from grpo_math.grading.equal import describe, equal_all
from grpo_math.grading.extract import STYLES, extract, well_formed
from grpo_math.grading.pool import PoolSettings, configure

__all__ = [
    "STYLES",
    "Grade",
    "PoolSettings",
    "configure",
    "explain",
    "extract",
    "grade",
    "grade_batch",
    "well_formed",
]

REASONS = {
    "too_long": "the answer is too long or too big to evaluate: wrong",
    "timeout": "the answer took longer than the deadline: wrong",
    "crashed": "the answer took more memory than a worker may use: wrong",
    "unparsable_gold": "the gold cannot be read: not scored",
}


@dataclass(frozen=True)
class Grade:
    """One verdict. `correct` is None when the gold itself cannot be read; `how` names what decided.

    `how` is a tier of `equal` (exact, number, algebra, structure, text, math_verify), or no_answer, too_long,
    unparsable_gold, timeout, crashed.
    """

    answer: str | None
    correct: bool | None
    how: str


def grade(completion: str, gold: str, style: str) -> Grade:
    """Grade one completion against the gold, looking for the answer where `style` puts it (a key of `STYLES`)."""
    return grade_batch([completion], [gold], style)[0]


def grade_batch(completions: list[str], golds: list[str], style: str) -> list[Grade]:
    """One `Grade` a completion, in order. What needs a worker process is spread over all of them."""
    answers = [extract(completion, style) for completion in completions]
    pairs = [(gold, answer) for gold, answer in zip(golds, answers, strict=True) if answer is not None]
    verdicts = iter(equal_all(pairs))
    return [
        Grade(None, *no_answer(gold)) if answer is None else Grade(answer, *next(verdicts))
        for gold, answer in zip(golds, answers, strict=True)
    ]


def explain(completion: str, gold: str, style: str) -> list[str]:
    """Why `grade` says what it says, a line a step."""
    verdict = grade(completion, gold, style)
    if verdict.answer is None:
        return [f"answer: none in style {style}", f"verdict: {verdict.correct} ({verdict.how})"]
    lines = [f"answer: {shortened(verdict.answer)}"]
    for name, text in (("gold", gold), ("answer", verdict.answer)):
        lines.append(f"{name} as read: {shortened(describe(text))}")
    lines.append("exact: " + ("the same text" if verdict.how == "exact" else "different texts"))
    if verdict.how != "exact":
        lines.append(f"{verdict.how}: {REASONS.get(verdict.how, 'equal' if verdict.correct else 'not equal')}")
    return [*lines, f"verdict: {verdict.correct} ({verdict.how})"]


def shortened(text: str, width: int = 200) -> str:
    return text if len(text) <= width else f"{text[:width]}... ({len(text):,} characters)"


def no_answer(gold: str) -> tuple[bool | None, str]:
    """Without an answer it is wrong, unless there was nothing to be right about."""
    return (False, "no_answer") if gold.strip() else (None, "unparsable_gold")
