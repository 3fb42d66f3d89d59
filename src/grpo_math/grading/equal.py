"""Whether an answer equals the gold. The only file that names math_verify."""

import re

MAX_CHARACTERS = 300  # a longer answer is not parsed: no gold of GSM8K or MATH comes near it


def normalise(text: str) -> str:
    """Strip what never changes the value: dollar signs, blanks that separate nothing, a trailing period, and the
    thousands separators of a lone number."""
    text = re.sub(r"\\[!,;: ]|~|\\?\$", " ", text)
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text).rstrip(".")
    return text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", text) else text


def parse(text: str) -> list:
    from math_verify import parse

    return parse(f"${text}$") if len(text) <= MAX_CHARACTERS else []


def parsable(gold: str) -> bool:
    """Whether the gold can be compared with anything but its own text."""
    return bool(normalise(gold)) and bool(parse(gold))


def equal(gold: str, answer: str) -> tuple[bool, str]:
    """Whether `answer` is worth the same as `gold`, and which test decided: `exact` or `math_verify`."""
    if normalise(gold) == normalise(answer) != "":
        return True, "exact"
    from math_verify import verify

    return verify(parse(gold), parse(answer)), "math_verify"
