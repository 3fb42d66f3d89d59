"""Whether an answer equals the gold, in tiers.

Every tier but the last is exact, takes microseconds and runs in this process:

- `exact`: the same text after `normalise`;
- `number`: rational numbers, with percent signs, units, currencies, separators, mixed numbers;
- `algebra`: formulas as ratios of polynomials (`algebra.py`), equations, inequalities;
- `structure`: lists, sets, points, intervals, matrices, ratios, numbers in a base, element by element;
- `text`: words and choices;
- `math_verify`: what the tiers above cannot settle, such as trigonometric identities, in a worker process (`pool.py`).

A list of several values never equals a single one. A tautology (x = x) is wrong. An answer too big to evaluate is
`too_long`, and wrong.
"""

import re
from functools import lru_cache

from grpo_math.grading.algebra import Meaningless, TooBig, Unreadable
from grpo_math.grading.algebra import equal as same_ratio
from grpo_math.grading.compare import MAX_ITEMS, same, tier
from grpo_math.grading.extraction import MAX_ANSWER, extract, without_boxes
from grpo_math.grading.reader import MAX_CHARACTERS, read, unknown, wordy
from grpo_math.grading.tokens import has_content, normalise, tokens, written
from grpo_math.grading.units import STOP
from grpo_math.grading.values import Answer, Expression, Group

Verdict = tuple[bool | None, str]  # None and `math_verify` where the exact tiers leave it open
CHOICE = re.compile(
    r"(?:(?i:option|choice|answer|graph)\s*)?(?:\(([A-J])\)(?:[.:]?\s(?P<rest>.*))?|([A-J])[.:)]?|([A-J])[.:)]\s(?P<more>.*))",
    re.DOTALL,
)
CONCLUSION = re.compile(r".*\\(?:implies|Rightarrow|Longrightarrow)(?![a-zA-Z])(?=[^=<>]*[=<>])")  # 2x = 8 => x = 4
INFINITE = re.compile(r"\\infty|(?<![a-z])(?:oo|inf)")  # math_verify compares what it cannot evaluate by chance
REFUSED = {TooBig: "too_long", Meaningless: "algebra", Unreadable: "structure"}
WORKER_MACROS = {r"\lfloor", r"\rfloor", r"\lceil", r"\rceil", r"\setminus", r"\cap"}
HEAVY = re.compile(r"\^[{(\s]*\d+\s*\^|\^[{(\s]*\d{4}|\d{4}[)}\s]*!|![)}\s]*!|\d{100}|.{300}", re.DOTALL)


@lru_cache(maxsize=2**14)
def settle(gold: str, answer: str) -> Verdict:
    """The verdict of the exact tiers and the tier's name."""
    copied = gold.strip() == answer.strip()
    if copied and gold.isalnum():
        return True, "exact"
    if len(answer) > MAX_ANSWER:
        return False, "too_long"
    gold, answer = readable(extract(gold, "boxed") or gold if "\\boxed" in gold else gold), readable(answer)
    if not has_content(gold):
        return None, "unparsable_gold"
    if not has_content(answer):
        return False, "no_answer"
    if copied or gold == answer:
        return True, "exact"
    if (premise := CONCLUSION.match(answer)) and not CONCLUSION.match(gold):
        answer = answer[premise.end() :]
    (letter, meant), (chosen, said) = choice(gold), choice(answer)
    if letter and (chosen or meant):  # of (C) 12: C, (C) 12 and 12 are right
        if chosen != letter and chosen:
            return False, "text"
        return settle(meant, said or answer) if meant and (said or not chosen) else (True, "text")
    try:
        wanted = read(gold)
    except Meaningless:
        return None, "unparsable_gold"
    except TooBig:  # only a copy is right
        return (None, "unparsable_gold") if len(gold) > MAX_CHARACTERS else (same_tokens(gold, answer), "text")
    try:
        given = read(answer)
        if wanted is None or given is None:
            return settle_unread(gold, answer, wanted, given)
        correct = respelled(wanted, answer) or same(wanted, given)
    except (TooBig, Meaningless, Unreadable) as error:
        return False, REFUSED[type(error)]
    if correct is None:
        return (False, tier(wanted, given)) if INFINITE.search(f"{gold} {answer}") else (None, "math_verify")
    return correct, tier(wanted, given)


def readable(text: str) -> str:
    return normalise(without_boxes(text) if "box" in text else text)


def same_tokens(gold: str, answer: str) -> bool:
    return written(tokens(gold)) == written(tokens(answer))


def settle_unread(gold: str, answer: str, wanted: Answer | None, given: Answer | None) -> Verdict:
    """One of the two is not in the reader's language. math_verify picks numbers out of anything, so it gets only what
    it is known to understand; words, broken syntax and unevaluated sums are compared as text."""
    if same_tokens(gold, answer):
        return True, "exact"
    words, unknowns = wordy(gold), unknown(gold)
    if gold.count("{") != gold.count("}") or (wanted is None and not unknowns and not words):
        return None, "unparsable_gold"
    if wanted is None and words and plain_words(gold) == plain_words(answer):
        return True, "text"
    number = isinstance(wanted, Expression) and wanted.value.fraction()
    broken = given is None and not unknown(answer)
    foreign = not unknowns | unknown(answer) <= WORKER_MACROS
    if number or broken or foreign or words or wordy(answer) or INFINITE.search(f"{gold} {answer}"):
        return False, "text"
    return (False, "too_long") if HEAVY.search(answer) else (None, "math_verify")


def plain_words(text: str) -> list[str]:
    return re.findall(r"[\w.]+|[-+*/^<>=(){}|[\]!':%]", text.lower())


def respelled(gold: Answer, answer: str) -> bool:
    """Whether the answer has the same digits as a number in a base, 3A, or as a decimal, behind a comma: 2,74."""
    if isinstance(gold, Group) and gold.kind.startswith("base"):
        return answer.strip('"').upper().lstrip("0") == gold.items[0]
    if not (isinstance(gold, Expression) and gold.decimals and re.fullmatch(r"-?\d+,(?!\d{3}$)\d+", answer)):
        return False
    decimal = read(answer.replace(",", "."))
    return isinstance(decimal, Expression) and same_ratio(gold.value, decimal.value) is True


def choice(text: str) -> tuple[str | None, str]:
    """The letter of a multiple-choice answer and what follows it: B, (B), B. 72, (B) 72; None for several letters."""
    found = CHOICE.fullmatch(text.replace('"', " ").strip()) if not text[:1].isdigit() else None
    rest = (found["rest"] or found["more"] or "") if found else ""
    if not found or re.search(r"\b[A-J]\b", rest) or STOP & set(re.findall(r"[a-z]+", rest.lower())):
        return None, ""
    return found[1] or found[3] or found[4], rest


def sums_up(parts: list[str]) -> bool:
    """Whether the last of several answers lists all the others, so that it alone counts."""
    if max(map(len, parts)) > MAX_ANSWER:
        return False
    try:
        *before, last = (read(readable(part)) for part in parts)
        if not isinstance(last, Group) or len(last.items) > MAX_ITEMS:
            return False
        return all(one is not None and any(same(item, one) for item in last.items) for one in before)
    except (TooBig, Meaningless, Unreadable):
        return False
