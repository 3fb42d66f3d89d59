"""From a completion to a verdict: find the answer, compare it with the gold, keep the evidence.

Imports neither torch nor trl nor transformers; math_verify is imported only by the worker processes.
"""

from dataclasses import dataclass

from grpo_math.grading.equal import describe, equal, equal_all, sums_up
from grpo_math.grading.extract import STYLES, answers, extract, well_formed
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
    found = [answers(completion, style) for completion in completions]  # TODO
    golds_and_answers = [(gold, parts) for gold, parts in zip(golds, found, strict=True)]
    pairs = [(gold, text) for gold, parts in golds_and_answers for text in (*parts, ", ".join(parts)) if text]
    verdicts = dict(zip(pairs, equal_all(pairs), strict=True))
    return [decide(gold, parts, verdicts) for gold, parts in golds_and_answers]


def decide(gold: str, parts: list[str], verdicts: dict) -> Grade:
    """Right if every answer of the completion is, or if their list is; without an answer wrong, unless there was
    nothing to be right about."""
    if not parts:
        return Grade(None, False, "no_answer") if gold.strip() else Grade(None, None, "unparsable_gold")
    whole = ", ".join(parts)
    singly = [verdicts[gold, part] for part in parts]
    if sums_up(parts) or all(correct for correct, _ in singly):
        return Grade(whole, *singly[-1])
    return Grade(whole, *verdicts[gold, whole])


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
