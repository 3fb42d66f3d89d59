"""math_verify's verdict on two answers. The only file that imports math_verify, and only worker processes call it."""

from grpo_math.grading.tokens import normalise


def verify(gold: str, answer: str) -> bool | None:
    """Whether math_verify takes the two for equal, None when it cannot read the gold. It may never return."""
    import math_verify

    wanted, given = (math_verify.parse(f"${readable(text)}$", parsing_timeout=None) for text in (gold, answer))
    return math_verify.verify(wanted, given, timeout_seconds=None) if wanted else None


def readable(text: str) -> str:
    """As math_verify understands it: degrees in radians."""
    return normalise(text).replace(r"\degree", r"\cdot\frac{\pi}{180}")
