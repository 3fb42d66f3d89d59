"""math_verify's verdict on two answers. The only file that imports math_verify, and only worker processes call it."""

import re

from grpo_math.grading.tokens import normalise

PRECISION = 1_100  # of numeric comparisons: more than an answer can write down, so that no approximation passes
SPELLED = [  # arguments without braces, which math_verify misreads, and decimals, which it rounds
    (re.compile(r"(\d*)\.(\d+)"), lambda found: rf"\frac{{{found[1]}{found[2]}}}{{1{'0' * len(found[2])}}}"),
    (re.compile(r"\\frac\s*(\\[a-zA-Z]+|\w)"), r"\\frac{\1}"),
    (re.compile(r"\\frac(\{[^{}]*\})\s*(\\[a-zA-Z]+|\w)"), r"\\frac\1{\2}"),
]


def verify(gold: str, answer: str) -> bool | None:
    """Whether math_verify takes the two for equal, None when it cannot read the gold. It may not terminate."""
    import math_verify

    wanted, given = parse(gold), parse(answer)
    settings = {"timeout_seconds": None, "numeric_precision": PRECISION, "float_rounding": PRECISION}
    return math_verify.verify(wanted, given, **settings) if wanted else None


def parse(text: str) -> list:
    """The text as one formula, with degrees in radians and i as the imaginary unit; nothing is picked out of it."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read
    from sympy import Expr, I

    text = normalise(text).replace(r"\degree", r"\cdot\frac{\pi}{180}")
    for pattern, replacement in SPELLED:
        text = pattern.sub(replacement, text)
    found = read(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    symbols = {symbol: I for one in found if isinstance(one, Expr) for symbol in one.free_symbols if str(symbol) == "i"}
    return [one.subs(symbols) if isinstance(one, Expr) else one for one in found]
