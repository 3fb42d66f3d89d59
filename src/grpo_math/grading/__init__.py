"""From a completion to a verdict: find the answer, compare it with the gold, keep the evidence.

Imports nothing heavier than math-verify, and that only when a comparison needs it.
"""

from dataclasses import dataclass

from grpo_math.grading.equal import equal, parsable
from grpo_math.grading.extract import STYLES, extract, well_formed

__all__ = ["STYLES", "Grade", "equal", "extract", "grade", "well_formed"]


@dataclass(frozen=True)
class Grade:
    """One verdict. `correct` is None when the gold itself cannot be read; `how` names what decided."""

    answer: str | None
    correct: bool | None
    how: str  # no_answer | exact | math_verify | unparsable_gold


def grade(completion: str, gold: str, style: str) -> Grade:
    """Grade one completion against the gold, looking for the answer where `style` puts it (a key of `STYLES`)."""
    answer = extract(completion, style)
    if answer is None:
        return Grade(None, False, "no_answer")
    correct, how = equal(gold, answer)
    if not correct and not parsable(gold):
        return Grade(answer, None, "unparsable_gold")
    return Grade(answer, correct, how)
