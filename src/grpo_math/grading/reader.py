"""Reading an answer, LaTeX or plain, into a value: formula, list, set, point, interval, matrix, equation, words.

Nothing is ever evaluated as code. `read` gives None for what is not in this small language. It raises `TooBig` for what
would take too much time or memory, and `Meaningless` for a statement that is false or says nothing.
"""

import re
from dataclasses import replace
from functools import lru_cache

from grpo_math.grading.algebra import TooBig, Unreadable, number
from grpo_math.grading.formula import Parser, is_sum, literal
from grpo_math.grading.statements import KNOWN, is_name, read_list
from grpo_math.grading.tokens import LETTERS, PLAIN, PLAIN_MACROS, tokens
from grpo_math.grading.units import TABLES
from grpo_math.grading.values import SETS, Answer, Expression, Group, Text, expressions

MAX_CHARACTERS = 1_000  # of an answer: no gold of GSM8K or MATH comes near it
MATRIX = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
WORDY = re.compile(r"[^\d\\=<>|^_+]*")
BASE = re.compile(
    r"(-?)\(?\"?([0-9a-fA-F]+(?:\.[0-9a-fA-F]+)?)\"?\)?\s*(?:_\s*\{?\s*\(?\"?\s*(?:base\"?\s)?\s*|\"?\(?\s*base\s*\"?)"
    r"\{?\s*(\d+|[a-z]+)\s*\"?\)?\s*\}?\"?\)?"
)
CLOCK = re.compile(r"(\d{1,2})(?: ?: ?(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s*m\.?|(noon|midnight))?", re.IGNORECASE)
RATIO = re.compile(r'\d+(?: ?"?(?:to|比)"? ?\d+)+')
NUMBERS = TABLES["numbers"]
WORDS: dict[str, Answer] = (
    {name: SETS[sign] for sign, names in TABLES["sets"].items() for name in names.split("|")}
    | {name: Expression(number(value)) for name, value in NUMBERS.items()}
    | {"noon": Group("clock", (12, 0, 0, "p")), "midnight": Group("clock", (12, 0, 0, "a"))}
)


@lru_cache(maxsize=2**15)
def read(text: str) -> Answer | None:
    """The value of a normalised answer, None where it is not in the language; raises TooBig and Meaningless."""
    if len(text) > MAX_CHARACTERS:
        raise TooBig
    try:
        return read_whole(text)
    except Unreadable:
        return None
    except RecursionError:
        raise TooBig from None


@lru_cache(maxsize=2**12)
def unknown(text: str) -> set[str]:
    """The macros that `read` does not know; a text without any that it cannot read is broken, or words."""
    return {token.text for token in tokens(text) if token.kind == "macro"} - KNOWN


@lru_cache(maxsize=2**12)
def wordy(text: str) -> bool:
    return any(token.kind == "text" for token in tokens(text)) or WORD.search(text) is not None


def read_whole(text: str) -> Answer:
    if plain := PLAIN.fullmatch(text):  # the short way
        value = literal(plain[2])
        return Expression(-value if plain[1] else value, decimals=len(plain[3] or ""))
    least = 3 if re.search("[-*/]", text) else 2  # letters of a word: ab - c is a formula
    if WORDY.fullmatch(text) and not LETTERS.fullmatch(text) and re.search(f"[A-Za-z]{{{least}}}", text):
        runs = re.findall("[A-Za-z]+", text)
        if not (any(run in PLAIN_MACROS for run in runs) or re.fullmatch("[b-df-hj-np-tv-z]{2,3}", text)):
            return read_words(text)
    if RATIO.fullmatch(text):
        return Group(":", tuple(Expression(number(int(part))) for part in re.findall(r"\d+", text)))
    if (based := BASE.fullmatch(text)) and (based[3].isdigit() or based[3] in NUMBERS):
        digits, base = based[2].upper().lstrip("0") or "0", NUMBERS.get(based[3]) or int(based[3])
        if all(int(digit, 36) < base for digit in digits if digit != ".") and not re.fullmatch("[a-zA-Z]", based[2]):
            return Group(f"base {base}", (based[1] + digits,)) if base != 10 else read_whole(based[1] + digits)
    if (clock := CLOCK.fullmatch(text.replace('"', ""))) and any(clock.groups()[1:]):
        hour, minute, second, half, named = clock.groups()
        half = half or {"n": "p", "m": "a"}.get((named or "").lower()[:1], "")
        return Group("clock", (int(hour), int(minute or 0), int(second or 0), half.lower()))
    if r"\begin" in text:
        return read_matrix(text)
    cut = tokens(text)
    return read_words(cut[0].text) if len(cut) == 1 and cut[0].kind == "text" else read_list(cut)


def read_words(text: str) -> Answer:
    words = re.sub(r"[^\w*/-]+", " ", text).strip().lower()
    return WORDS.get(words) or Text(words)


def read_matrix(text: str) -> Answer:
    found = MATRIX.search(text)
    if not found:
        raise Unreadable
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if "=" in before:
        name, _, before = map(str.strip, before.rpartition("="))
        if not is_name(tokens(name)):
            raise Unreadable
    if (before, after) in {("(", ")"), ("[", "]")}:
        before = after = ""
    scale = tokens("-1" if before == "-" else before or "1")
    if after or is_sum(scale):
        raise Unreadable
    factor = Parser(scale).whole()
    rows = [row.split("&") for row in found[2].split(r"\\") if row.strip()]
    cells = [read_list(tokens(cell.strip())) for row in rows for cell in row]
    if len({len(row) for row in rows}) != 1 or not expressions(cells):
        raise Unreadable
    scaled = (replace(cell, value=cell.value * factor, other_reading=None) for cell in cells)
    return Group(f"{len(rows)}x{len(rows[0])}", tuple(scaled))
