"""Many completions at a time: each pair of gold and answer is settled once, the open ones by the worker processes."""

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from grpo_math.grading.extraction import STYLES, answers
from grpo_math.grading.pool import Verdict, pool
from grpo_math.grading.tokens import has_content, normalise

T = TypeVar("T")
MAX_PARTS = 8  # different answers of one completion
MAX_KNOWN = 2**16
logger = logging.getLogger(__name__)
known: dict[tuple[str, str], Verdict] = {}  # the workers' verdicts, the oldest first


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        answer: The extracted answer, None if there is none.
        correct: Whether the answer equals the gold. None if the gold cannot be read.
        how: What decided: the method of comparison (`exact`, `number`, `algebra`, `structure`, `text`, `math_verify`),
            or `no_answer`, `too_long`, `timeout`, `crashed`, `unparsable_gold`.
    """

    answer: str | None
    correct: bool | None
    how: str


def grade(completion: str, gold: str, style: str = "boxed") -> Grade:
    """Grade one completion.

    Args:
        completion: The text of the completion.
        gold: The final reference answer, or a JSON list of texts, `["1/2", "0.5"]`, of which each is right.
        style: Where the answer is: `boxed`, `hash` (`#### 72`), `answer_tag` (`<answer>72</answer>`) or `fallback`:
            a box, else `####`, else "the answer is", else the last expression.

    Returns:
        The verdict.

    Raises:
        ValueError: For an unknown style, and unless both are strings.
    """
    return grade_batch([completion], [gold], style)[0]


def grade_batch(completions: list[str], golds: list[str], style: str = "boxed") -> list[Grade]:
    """Grade a batch of completions. Worker processes compare what is hard to compare, with a time limit per answer.

    Args:
        completions: The texts of the completions.
        golds: One gold per completion, as for `grade`.
        style: Where the answer is, as for `grade`.

    Returns:
        One verdict per completion, in order. An exception while one is graded gives `crashed`, and the batch continues.

    Raises:
        ValueError: For an unknown style, and unless there are as many golds as completions, all of them strings.
    """
    if style not in STYLES:
        raise ValueError(f"unknown answer style {style!r}: use one of {', '.join(STYLES)}")
    if len(completions) != len(golds) or not all(isinstance(text, str) for text in (*completions, *golds)):
        raise ValueError(f"expected as many completions as golds, all strings, got {len(completions)} and {len(golds)}")
    found = [guarded(answers, completion, style) for completion in completions]
    right = [accepted(gold) for gold in golds]
    pairs = [
        (gold, text)
        for some, parts in zip(right, found, strict=True)
        if parts and len(parts) <= MAX_PARTS
        for gold in some
        for text in (*parts, ", ".join(parts))
    ]
    verdicts = dict(zip(pairs, equal_all(pairs), strict=True))
    crashed = Grade(None, False, "crashed")
    grades = [
        [guarded(decide, gold, parts, verdicts) or crashed for gold in some]
        for some, parts in zip(right, found, strict=True)
    ]
    return [max(some, key=lambda grade: (grade.correct is True, grade.correct is False)) for some in grades]


def accepted(gold: str) -> list[str]:
    """The answers that are right: the texts of a JSON list, `["1/2", "50 %"]`, or else the gold alone."""
    if re.match(r'\[\s*"', gold):
        with suppress(ValueError, RecursionError):
            texts = json.loads(gold)
            if all(isinstance(text, str) for text in texts):
                return texts
    return [gold]


def decide(gold: str, parts: list[str] | None, verdicts: dict) -> Grade | None:
    """Correct if every answer of the completion is correct, or their list is. No answer is wrong, or not scored if the
    gold is empty. None if extraction failed."""
    from grpo_math.grading.equal import sums_up  # the rules are loaded by the first grade

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


def equal_all(pairs: list[tuple[str, str]]) -> list[Verdict]:
    """Whether each answer equals its gold, and what decided, for (gold, answer) pairs; None if the gold cannot be read.
    What the exact tiers leave open goes to the workers, each pair once."""
    from grpo_math.grading.equal import settle

    verdicts = {pair: guarded(settle, *pair) or (False, "crashed") for pair in dict.fromkeys(pairs)}
    verdicts |= {pair: known[pair] for pair, (correct, _) in verdicts.items() if correct is None and pair in known}
    open_ = [pair for pair, (correct, how) in verdicts.items() if correct is None and how == "math_verify"]
    if open_:
        texts = [(guarded(normalise, gold) or gold, guarded(normalise, answer) or answer) for gold, answer in open_]
        found = dict(zip(open_, pool.run(texts), strict=True))
        verdicts |= found
        known.update({pair: verdict for pair, verdict in found.items() if verdict[1] == "math_verify"})
        for pair in list(known)[: max(0, len(known) - MAX_KNOWN)]:
            known.pop(pair, None)  # another thread may have
    return [verdicts[pair] for pair in pairs]


def guarded(function: Callable[..., T | None], *arguments: object) -> T | None:
    """Return None if the function raises. An exception in the grader fails one completion, not the run."""
    try:
        return function(*arguments)
    except Exception as error:
        logger.warning("grading crashed (%r) on %.300r: counted as wrong, please report it", error, arguments)
        return None
