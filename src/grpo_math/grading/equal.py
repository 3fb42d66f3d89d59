"""Whether an answer is worth the same as the gold, in tiers.

Every tier but the last is exact, takes microseconds and runs in this process:

- `exact`: the same text after `normalise`;
- `number`: rational numbers, with percent signs, units, currencies, separators, mixed numbers;
- `algebra`: formulas as ratios of polynomials (`algebra.py`), equations, inequalities;
- `structure`: lists, sets, points, intervals, matrices, ratios, numbers in a base, element by element;
- `text`: words and choices;
- `math_verify`: what the tiers above cannot settle, such as trigonometric identities, in a worker process (`pool.py`).

A list of several values is never worth a single one, an equation that says nothing (x = x) is worth nothing, and an
answer too big to evaluate is `too_long`, and wrong.
"""

import re
from collections import OrderedDict
from functools import lru_cache

from grpo_math.grading.algebra import TooBig
from grpo_math.grading.algebra import equal as same_ratio
from grpo_math.grading.compare import same, tier
from grpo_math.grading.extract import extract
from grpo_math.grading.pool import pool
from grpo_math.grading.reader import read, unknown, wordy
from grpo_math.grading.tokens import normalise
from grpo_math.grading.values import Expression

MAX_KNOWN = 2**16
MAX_RAW = 4_000  # characters of an answer that are worth a look
CHOICE = re.compile(
    r"(?:(?i:option|choice|answer|graph)\s*)?(?:\(([A-J])\)(?:[.:]?\s(?P<rest>.*))?|([A-J])[.:)]?|([A-J])[.:)]\s(?P<more>.*))",
    re.DOTALL,
)
WORKER_MACROS = {r"\lfloor", r"\rfloor", r"\lceil", r"\rceil", r"\mathbb", r"\setminus", r"\cap"}
HEAVY = re.compile(r"\^[{(\s]*\d+\s*\^|\^[{(\s]*\d{4}|\d{4}[)}\s]*!|![)}\s]*!|\d{100}|.{300}", re.DOTALL)
UNEVALUATED = re.compile(r"\\(?:sum|prod|i*int|lim|[lc]?dots)(?![a-zA-Z])|\.\.\.")


@lru_cache(maxsize=2**16)
def settle(gold: str, answer: str) -> tuple[bool | None, str]:
    """The verdict of the exact tiers and the tier's name; None and `math_verify` when they leave it open."""
    if gold.strip() == answer.strip() != "":
        return True, "exact"
    if len(answer) > MAX_RAW:
        return False, "too_long"
    gold, answer = normalise(unboxed(gold)), normalise(unboxed(answer) if answer.startswith("\\boxed") else answer)
    if gold == answer != "":
        return True, "exact"
    if (letter := choice(gold)) and letter == choice(answer):
        return True, "text"
    try:
        wanted = read(gold)
    except TooBig:
        return None, "unparsable_gold"
    try:
        given = read(answer)
        if wanted is None or given is None:
            return settle_unread(gold, answer)
        correct = decimal_comma(wanted, answer) or same(wanted, given)
        return correct, "math_verify" if correct is None else tier(wanted, given)
    except TooBig:
        return False, "too_long"


def unboxed(text: str) -> str:
    r"""A gold column may hold a whole solution with its `\boxed{}`."""
    return extract(text, "boxed") or text if "\\boxed" in text else text


def describe(text: str) -> str:
    """What the exact tiers read an answer as, for people."""
    text = normalise(unboxed(text))
    try:
        value = read(text)
    except TooBig:
        return "too big to evaluate"
    return f"{text!r}, not in the exact tiers' language" if value is None else f"{type(value).__name__} {value}"


def settle_unread(gold: str, answer: str) -> tuple[bool | None, str]:
    """One of the two is not in the reader's language. math_verify picks numbers out of anything, so it gets only what
    it is known to understand; words, broken syntax and sums that nobody has added up are what they are."""
    if without_blanks(gold) == without_blanks(answer):
        return True, "exact"
    wanted, given = read(gold), read(answer)
    unbalanced = gold.count("{") != gold.count("}")
    if not gold or unbalanced or (wanted is None and not unknown(gold) and not wordy(gold)):
        return None, "unparsable_gold"
    if wanted is None and wordy(gold) and plain_words(gold) == plain_words(answer):
        return True, "text"
    macros = unknown(gold) | unknown(answer)
    number = isinstance(wanted, Expression) and wanted.value.fraction()
    if number or wordy(gold) or wordy(answer) or not macros <= WORKER_MACROS or (given is None and not unknown(answer)):
        return False, "text"
    return (False, "too_long") if HEAVY.search(answer) else (None, "math_verify")


def plain_words(text: str) -> list[str]:
    return re.findall(r"[\w.]+|[-+*/^<>=]", text.lower())


def without_blanks(text: str) -> str:
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def decimal_comma(gold: object, answer: str) -> bool:
    """Whether the gold is a decimal and the answer has the same digits behind a comma: 2,74."""
    if not (isinstance(gold, Expression) and gold.decimals and re.fullmatch(r"-?\d+,(?!\d{3}$)\d+", answer)):
        return False
    given = read(answer.replace(",", "."))
    return gold.value.fraction() is not None and same_ratio(gold.value, given.value) is True


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: B, (B), B. 72, (B) 72; None for several letters."""
    found = CHOICE.fullmatch(text.replace('"', " ").strip()) if not text[:1].isdigit() else None
    rest = found and (found["rest"] or found["more"] or "")
    if not found or re.search(r"\b[A-J]\b|\b(?:or|and|not)\b", rest):
        return None
    return found[1] or found[3] or found[4]


known: OrderedDict[tuple[str, str], tuple[bool, str]] = OrderedDict()  # the workers' verdicts, the oldest first


def remember(pair: tuple[str, str], verdict: tuple[bool, str]) -> None:
    known[pair] = verdict
    if len(known) > MAX_KNOWN:
        known.popitem(last=False)


def equal(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether `answer` is worth the same as `gold`, and what decided; None when the gold cannot be read."""
    return equal_all([(gold, answer)])[0]


def equal_all(pairs: list[tuple[str, str]]) -> list[tuple[bool | None, str]]:
    """`equal` for each (gold, answer), in order. What the exact tiers leave open goes to the workers, a pair once."""
    verdicts = {pair: settle(*pair) for pair in dict.fromkeys(pairs)}
    verdicts |= {pair: known[pair] for pair, (correct, _) in verdicts.items() if correct is None and pair in known}
    open_ = [pair for pair, (correct, how) in verdicts.items() if correct is None and how == "math_verify"]
    if open_:
        for pair, verdict in zip(open_, pool().run(open_), strict=True):
            verdicts[pair] = verdict
            if verdict[1] == "math_verify":
                remember(pair, verdict)
    return [verdicts[pair] for pair in pairs]
