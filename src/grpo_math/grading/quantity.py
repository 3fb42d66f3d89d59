"""A formula with what may stand around it: a currency, a percent sign, units in words."""

import re
from itertools import takewhile

from grpo_math.grading.algebra import Ratio, Unreadable, number
from grpo_math.grading.formula import Parser
from grpo_math.grading.tokens import CLOSING, OPENING, UNITS, Token, wrapped, written
from grpo_math.grading.values import Expression, Text

STOP = {  # words that do not belong to units: what stands with them is another answer
    "not", "no", "or", "and", "plus", "minus", "squared", "cubed", "factorial", "than", "if", "mod", "maybe",
    "possibly", "is", "isnt", "wrong", "to", "vs", "versus", "out", "half", "halves", "third", "thirds", "between",
    "unless", "except", "either", "negative", "point", "zero", "one", "two", "three", "four", "five", "six", "seven",
    "eight", "nine", "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "least", "most",
    "root", "remainder", "below", "above", "by", "increased", "decreased", "incorrect", "false", "never", "cannot",
    "because", "since", "reciprocal", "inverse", "doubled", "twice", "double", "triple", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "seventy", "eighty", "ninety", "fourth", "fourths",
    "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths", "hundredths", "thousandths",
}  # fmt: skip
SCALES = {
    "dozen": 12, "score": 20, "hundred": 100, "gross": 144, "thousand": 1_000, "lakh": 10**5, "million": 10**6,
    "billion": 10**9, "trillion": 10**12,
}  # fmt: skip


def read_expression(cut: list[Token]) -> Expression | Text:
    """A formula with what may stand around it: a currency before, %, and units in words behind."""
    if cut and all(token.kind == "text" for token in cut):
        return Text(" ".join(token.text.strip().lower() for token in cut))
    first = 1 if len(cut) > 1 and cut[0].text == "-" else 0
    currency = [token for token in cut[first : first + 1] if token.text in ("dollars", "Dollars")]
    cut = cut[:first] + cut[first + len(currency) :]
    end = next((index for index in range(first + 1, len(cut)) if is_unit(cut, index)), len(cut))
    formula, units = cut[:end], read_units(cut[end:])
    percent = bool(formula) and formula[-1].text == "%"
    formula = formula[:-1] if percent else formula
    value = Parser(formula).whole().replaced(r"\degree", number(1))
    bare = value if units and singular(units[0]) == "dozen" else bare_value(formula)  # how many dozens?
    for name in takewhile(SCALES.__contains__, map(singular, units)):
        value = value * number(SCALES[name])
    last = formula[-1].text if len(formula) == 1 or (len(formula) == 2 and formula[0].text == "-") else ""
    names = frozenset(UNITS[name] for name in [*units, *written(currency)] if name in UNITS)
    return Expression(
        value,
        percent,
        names,
        bare,
        len(last.partition(".")[2]) if "." in last else None,
        is_sum(formula),
    )


def singular(word: str) -> str:
    return word.lower() if word.lower() in SCALES else word.lower().removesuffix("s")


def is_sum(formula: list[Token]) -> bool:
    """Whether a plus or minus stands between terms, outside all brackets (but those around it all) and exponents."""
    while wrapped(formula):
        formula = formula[1:-1]
    depth, bar, before = 0, False, ""
    for token in formula:
        bar = not bar if token.text == "|" else bar
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if not (depth or bar) and before not in ("", "^", "/", r"\cdot") and token.text in ("+", "-"):
            return True
        before = token.text
    return False


def read_units(cut: list[Token]) -> list[str]:
    """The words of units; nothing else may stand among them, so that nothing is thrown away unread."""
    names = []
    for at, token in enumerate(cut):
        words = re.findall(r"[A-Za-z]+", token.text) if token.kind in ("text", "symbol") else []
        power = token.text in ("2", "3", "1", "-") and any(before.text == "^" for before in cut[max(0, at - 3) : at])
        if STOP & {word.lower() for word in words} or re.search(r"[\\\d]", token.text if words else ""):
            raise Unreadable("words that are no units")
        if not (words or power or token.text in "/^{}().," or token.text == r"\cdot"):
            raise Unreadable("something behind a unit")
        if token.kind == "symbol" and token.text not in UNITS:
            raise Unreadable("a symbol behind a unit")
        names += words
    return names


def is_unit(cut: list[Token], at: int) -> bool:
    """Whether units begin here: words behind a blank."""
    token = cut[at]
    if token.kind == "text":
        return token.spaced or token.text in UNITS or not token.text.isalpha()
    if token.text in ("{", "(", "/"):
        return at + 1 < len(cut) and cut[at + 1].kind == "text"
    return False


def bare_value(formula: list[Token]) -> Ratio | None:
    """Of `5m` and `5 m/s`, the 5: a number, and letters that may be units."""
    at = next((index for index, token in enumerate(formula) if token.kind == "symbol"), 0)
    if not at or not all(token.text in UNITS or token.text in "/^{}23" for token in formula[at:]):
        return None
    try:
        return Parser(formula[:at]).whole()
    except Unreadable:
        return None
