"""A formula with its currency, percent signs, units and words."""

import re
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from grpo_math.grading.algebra import Unreadable, number
from grpo_math.grading.formula import Parser
from grpo_math.grading.tokens import FUNCTIONS, Token, written
from grpo_math.grading.units import CJK, CURRENCIES, RAW, UNITS, read_units
from grpo_math.grading.values import Expression, Text

NO_SUM = re.compile(r"\^ (?:\{ [^{}]* \}|\( [^()]* \)|[+-] \S+|\S+)|\| \d+ - \d+ \|")
SUM = re.compile(r"(?:(?<=[\w)\]}!%+-])|(?<=[\w)\]}!] \|))(?<!\\cdot)(?<!\\cdot \|)(?<!\\frac) [+-] ")


def read_expression(cut: list[Token]) -> Expression | Text:
    """A formula with its currency and units, or words. Raises Unreadable."""
    if cut and all(token.kind == "text" for token in cut):
        return Text(" ".join(token.text.strip().lower() for token in cut))
    first = 1 if len(cut) > 1 and cut[0].text == "-" else 0
    currency = dict(UNITS.get(cut[first].text, {})) if len(cut) > first and cut[first].kind == "text" else {}
    if currency.keys() & CURRENCIES:
        cut = cut[:first] + cut[first + 1 :]
    end = next((index for index in range(first + 1, len(cut)) if is_unit(cut, index)), len(cut))
    for before, one in pairwise(cut[end - 1 :] if end < len(cut) else ()):
        if one.kind == "symbol" and (one.text not in UNITS or before.text != "/"):
            raise Unreadable("a symbol behind a unit")
    found = expression(cut[:end], spelled(cut[end:]), currency)
    at = next((index for index, token in enumerate(cut[:end]) if token.text in RAW), 0)
    if at and cut[at - 1].kind == "number" and all(token.text in RAW or token.text in "/^{-}123" for token in cut[at:]):
        with suppress(Unreadable):  # \sqrt{2gh} and 2k - 1 hold no units
            return replace(found, other_reading=expression(cut[:at], spelled(cut[at:]).replace("K", "k"), currency))
    if spelled(cut[end:]).strip().startswith("dozen"):  # how many dozens?
        return replace(found, other_reading=expression(cut[:end], "", currency))
    return found


def expression(formula: list[Token], behind: str, currency: dict[str, int]) -> Expression:
    parser = Parser(formula)
    value = parser.whole()
    scale, powers, words = read_units(behind)
    units = {**currency, **powers} | ({"degree": 1} if parser.degrees else {})
    last = formula[-1].text if len(formula) == 1 or (len(formula) == 2 and formula[0].text == "-") else ""
    decimals = len(last.partition(".")[2]) if re.fullmatch(r"[\d,]*\.?\d+", last) else None
    scaled = value * number(*scale.as_integer_ratio()) if scale != 1 else value
    return Expression(scaled, units, words, None, decimals, is_sum(formula))


def is_sum(formula: list[Token]) -> bool:
    r"""Whether a plus or minus stands between terms, except in |5-11| and in exponents; those of e^{\ln(2+3)} count."""
    signs = written(formula)
    text = " ".join(signs)
    return SUM.search(text if FUNCTIONS.intersection(signs) else NO_SUM.sub("0", text)) is not None


def is_unit(cut: list[Token], at: int) -> bool:
    """Whether units begin here: a percent sign, or words behind a blank."""
    token = cut[at]
    if token.kind == "text":
        return token.spaced or token.text in UNITS or not token.text.isalpha() or re.match(CJK, token.text) is not None
    ohm = token.text == r"\Omega" and cut[at - 1].kind == "number" and at == len(cut) - 1
    return (
        ohm or token.text == "%" or (token.text in ("{", "(", "/") and at + 1 < len(cut) and cut[at + 1].kind == "text")
    )


def spelled(cut: list[Token]) -> str:
    return "".join(f" {token.text}" if token.spaced else token.text for token in cut)
