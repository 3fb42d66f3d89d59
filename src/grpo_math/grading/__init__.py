r"""From a completion to a verdict: find the answer, compare it with the gold, keep the evidence.

>>> from grpo_math.grading import grade
>>> grade(r"12 of 16 are left, so \boxed{\frac{12}{16}}", gold="0.75", style="boxed")
Grade(answer='\\frac{12}{16}', correct=True, how='number')

Completions, golds and styles go in; a `Grade` for each completion comes out. Imports nothing else of grpo_math but its
errors, and neither torch nor trl nor transformers; math_verify is imported by the worker processes alone.
"""

from dataclasses import dataclass

from grpo_math.grading.equal import equal_all, guarded, sums_up
from grpo_math.grading.extract import STYLES, answers, extract, well_formed
from grpo_math.grading.pool import PoolSettings, configure
from grpo_math.grading.tokens import has_content, normalise

__all__ = ["STYLES", "Grade", "PoolSettings", "configure", "extract", "grade", "grade_batch", "well_formed"]

MAX_PARTS = 8  # different answers of one completion


@dataclass(frozen=True)
class Grade:
    """One verdict. `answer` is what was extracted. `correct` is None when the gold cannot be read. `how` names what
    decided: a tier of `equal` (exact, number, algebra, structure, text, math_verify), or no_answer, too_long, timeout,
    crashed, unparsable_gold."""

    answer: str | None
    correct: bool | None
    how: str


def grade(completion: str, gold: str, style: str = "boxed") -> Grade:
    """Grade one completion against the gold, looking for the answer where `style` puts it (a key of `STYLES`)."""
    return grade_batch([completion], [gold], style)[0]


def grade_batch(completions: list[str], golds: list[str], style: str = "boxed") -> list[Grade]:
    """One `Grade` per completion, in order. An exception while one is graded gives `crashed`, and the batch goes on.

    Pairs of gold and answer that need math_verify are deduplicated and spread over the worker processes. Raises
    ValueError for an unknown style, and unless there are as many golds as completions, all of them strings.
    """
    if style not in STYLES:
        raise ValueError(f"no answer style {style!r}: use one of {', '.join(STYLES)}")
    if len(completions) != len(golds) or not all(isinstance(text, str) for text in (*completions, *golds)):
        raise ValueError(f"{len(completions)} completions, {len(golds)} golds: want as many of both, all strings")
    found = [guarded(answers, completion, style) for completion in completions]
    pairs = [(gold, text) for gold, parts in zip(golds, found, strict=True) for text in whole_and_parts(parts or [])]
    verdicts = dict(zip(pairs, equal_all(pairs), strict=True))
    crashed = Grade(None, False, "crashed")
    return [guarded(decide, *pair, verdicts) or crashed for pair in zip(golds, found, strict=True)]


def whole_and_parts(parts: list[str]) -> list[str]:
    if len(parts) > MAX_PARTS:
        return []
    return [*parts, ", ".join(parts)] if len(parts) > 1 else parts


def decide(gold: str, parts: list[str] | None, verdicts: dict) -> Grade | None:
    """Correct if every answer of the completion is correct, or their list is. No answer is wrong, or not scored if the
    gold is empty. None if extraction failed."""
    if parts is None:
        return None
    if not parts:
        nothing = not has_content(normalise(gold))
        return Grade(None, None, "unparsable_gold") if nothing else Grade(None, False, "no_answer")
    if len(parts) > MAX_PARTS:
        return Grade(", ".join(parts[:MAX_PARTS]) + ", ...", False, "too_long")
    whole, singly = ", ".join(parts), [verdicts[gold, part] for part in parts]
    if all(correct for correct, _ in singly) or guarded(sums_up, parts):
        return Grade(whole, *singly[-1])
    return Grade(whole, *verdicts[gold, whole])
