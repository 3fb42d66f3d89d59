r"""From an answer as written to tokens: `normalise` removes what never changes the value, `tokens` splits the rest."""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from grpo_math.grading.units import CJK, SCALES, TABLES, UNITS, only_units

UNICODE = {sign: latex for latex, signs in TABLES["unicode"].items() for sign in signs}
SYNONYMS: dict[str, str] = {other: token for token, others in TABLES["synonyms"].items() for other in others.split()}
ATOMS, FUNCTIONS, ACCENTS, EMPTY_MACROS = (
    set(TABLES["macros"][kind].split()) for kind in ("symbols", "functions", "accents", "empty")
)
PLAIN_MACROS = {macro[1:]: macro for macro in FUNCTIONS} | TABLES["plain_macros"]
BEFORE_TEXT, AFTER_TEXT = (
    [(sign, re.compile(pattern), replacement) for sign, pattern, replacement in TABLES["rewrites"][place]]
    for place in ("before_text", "after_text")
)
PLAIN = re.compile(r"(-?)((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.(\d+))?)")  # most answers of GSM8K
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mbox|hbox|math(?:rm|bf|it|sf)|boldsymbol|bm|operatorname\*?)(?:\s*\{((?:[^{}\"]|\^\{-?\d\})*)\}|(?![a-zA-Z]))"
)
ALIGNED = re.compile(
    r"\\begin\{(?:(aligned|align\*?|gathered|split|equation\*?)\}(.*?)\\end\{\1|cases\}([^&]*?)\\end\{cases)\}",
    re.DOTALL,
)
DIGIT = re.compile(r"\d")
STRAY = re.compile(r"(?<!\\)\\(?=[^\x00-}])")  # a backslash before ~ or a character outside ASCII
ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[lcr|]*\})?")
REPEATING = re.compile(  # 0.1\overline{6}, 0.1(6), 0.1666...
    r"(?<![\d.])(?P<whole>\d{0,20})\."
    r"(?:(?P<before>\d{0,20})(?:\\(?:overline|bar|dot)\s*(?:\{(\d{1,20})\}|(\d))|\((\d{1,20})\))"
    r"|(?P<first>\d{0,9}?)(\d{1,9}?)\7{2,}(?:\\[lc]?dots|\.\.\.))"
)
LEAD = re.compile(TABLES["lead"]["pattern"])
LETTERS = re.compile(r"\(?[A-Za-z]\)?(?:(?:\s*(?:,|;|and\b|or\b))+\s*\(?[A-Za-z]\)?)+|\([A-Za-z]\)")
TOKEN = re.compile(
    rf"""(?P<space>\s*)(?:
      (?P<number>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+(?!,?\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)
    | (?P<macro>\\[a-zA-Z]+|\\.)
    | "(?P<text>[^"]*)"
    | (?P<cjk>{CJK}+)
    | (?P<letters>[a-zA-Z]+)
    | (?P<operator><=|>=|!=|==|\*\*|\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
JOINERS = {"and", "or"}
SHORT = {"of", "at", "on", "an", "up", "by", "to", "is", "if", "am", "pm"}  # words of two letters
OPENING, CLOSING = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}

EMPTY_MACROS |= OPENING | CLOSING
NO_UNIT_AFTER = {"(", "[", "+", "-", "=", "^", "_", r"\frac", r"\sqrt", r"\cdot"}


class Token(NamedTuple):
    """A piece of a normalised answer."""

    kind: str  # number, symbol, macro, text, operator
    text: str
    spaced: bool  # a blank before it


@lru_cache(maxsize=2**14)
def normalise(text: str) -> str:
    """Remove what never changes the value: styles, sizes, dollar signs, blanks that separate nothing, a last period."""
    if PLAIN.fullmatch(text):
        return text
    text = " ".join(text.split())
    text = STRAY.sub("", text) if "\\" in text else text
    if not text.isascii():
        text = "".join(UNICODE.get(character) or plain(character) for character in text)
        text = text.replace("\0}^{", "").replace("\0}_{", "").replace("\0", "")  # of several raised digits
    if "\\begin" in text:
        text = ALIGNED.sub(aligned, text)
    text = rewritten(text, BEFORE_TEXT)
    text = TEXT.sub(words, text) if "\\" in text else text
    text = REPEATING.sub(repeating, text) if "." in text else text
    text = rewritten(text, AFTER_TEXT)
    text = " ".join(text.split()).strip("*`").strip()  # Markdown
    if text[:1] == text[-1:] == '"' and text.count('"') == 2 and re.search(r"\d", text):
        text = text[1:-1]
    end = text.rstrip(".,;:\\ *`")
    text = text if ".." in text[len(end) :] else end
    lead = LEAD.match(text)
    return text[lead.end() :].strip() if lead else text


def rewritten(text: str, rules: list) -> str:
    for sign, pattern, replacement in rules:
        text = pattern.sub(replacement, text) if sign in text else text
    return text


def plain(character: str) -> str:
    """A fullwidth digit as a digit, ½ as ` 1/2`, ⁵ as `^{5}`, a Greek letter as its macro, unseen signs as nothing."""
    normal, kind = unicodedata.normalize("NFKC", character), unicodedata.decomposition(character)
    normal = UNICODE.get(normal, normal)
    if kind.startswith("<super>"):
        return f"^{{{normal}\0}}"
    if kind.startswith("<sub>"):
        return f"_{{{normal}\0}}"
    if "\u2044" in normal:
        over, under = normal.split("\u2044")
        return rf"\frac{{{over}}}{{{under}}}"
    if greek := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(normal[:1] or " ", "")):
        return f"\\{greek[2].lower() if greek[1] == 'SMALL' else greek[2].capitalize()} "
    return "" if unicodedata.category(character) == "Cf" else normal


def aligned(found: re.Match) -> str:
    """The rows of an aligned formula as one line; a row that begins with a relation continues the one before."""
    rows = (found[2] or found[3] or "").replace("&", " ").strip().rstrip("\\")
    return re.sub(r"\\\\\s*(?=[=<>]|\\(?:[lg]e|approx))", " ", rows).replace(r"\\", " , ")


def repeating(found: re.Match) -> str:
    r"""0.1\overline{6} as a fraction."""
    whole, before = found["whole"] or "0", found["before"] or found["first"] or ""
    again = next(filter(None, (found[place] for place in (3, 4, 5, 7))))
    top = int(whole + before + again) - int(whole + before)
    return rf"\frac{{{top}}}{{{(10 ** len(again) - 1) * 10 ** len(before)}}}"


def words(found: re.Match) -> str:
    """What a text macro holds: quoted, or unchanged where there is something to read in it, such as 5 cm or A, B."""
    content = found[1] or ""
    bare = re.sub(r"\\mu\s*", "µ", content).strip()
    if bare in UNITS or bare in SCALES or only_units(bare):
        return f' "{bare}" '
    if bare in PLAIN_MACROS or re.fullmatch(r"\\[a-zA-Z]+", bare):
        return f" {PLAIN_MACROS.get(bare, bare)} "
    if len(bare) < 2 or bare in JOINERS or re.search(r"[\d%$]", bare) or LETTERS.fullmatch(bare):
        return f" {content} " if content else ""
    return f' "{bare}" '


def tokens(text: str) -> list[Token]:
    """Split a normalised text; letters become single symbols, or words where they can be nothing else."""
    result: list[Token] = []
    depth = 0
    for found in TOKEN.finditer(text):
        kind, spaced = found.lastgroup or "", bool(found["space"])
        sign: str = SYNONYMS.get(found[kind], found[kind])
        if sign not in "{}":  # which only group
            depth += (sign in OPENING) - (sign in CLOSING)
        if kind == "letters":
            result += letters(sign, spaced, result)
        elif kind == "number" and depth and "," in sign:  # (1,234) is a point
            parts = re.split("(,)", sign)
            result += [Token("operator" if part == "," else kind, part, spaced) for part in parts]
        else:
            if kind in ("operator", "macro"):
                kind = "text" if sign in JOINERS else "macro" if sign[0] == "\\" else "operator"
            word = sign.strip(" ,").lower()
            result.append(Token("text" if kind == "cjk" else kind, word if word in JOINERS else sign, spaced))
    return result


@lru_cache(maxsize=2**12)
def has_content(text: str) -> bool:
    """Whether a normalised text holds anything but brackets, separators, signs and words that join."""
    return DIGIT.search(text) is not None or any(
        token.kind in ("number", "symbol")
        or (token.kind == "text" and token.text not in JOINERS and re.search(r"\w", token.text))
        or (token.kind == "macro" and token.text not in EMPTY_MACROS)
        for token in tokens(ENVIRONMENT.sub("", text))
    )


def written(cut: list[Token]) -> list[str]:
    return [token.text for token in cut]


def wrapped(cut: list[Token]) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for index, token in enumerate(cut):
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if depth <= 0:
            return index == len(cut) - 1 > 0 and token.text in CLOSING
    return False


def letters(run: str, spaced: bool, before: list[Token]) -> list[Token]:
    lower = run.lower()
    if spaced and before and before[-1].kind == "number" and run in UNITS and len(run) > 2:  # 50 min, 50 sec
        return [Token("text", run, spaced)]
    if macro := PLAIN_MACROS.get(lower if len(run) > 2 else run):
        return [Token("macro", macro, spaced)]
    behind = spaced and bool(before) and before[-1].kind in ("number", "text") and not set(lower) <= set("abcdxyz")
    article = run == "a" and spaced and bool(before) and before[-1].kind == "text"
    unit = len(run) > 1 and run in UNITS and (not before or before[-1].text not in NO_UNIT_AFTER)
    word = len(run) > 3 or unit or (behind and (len(run) == 3 or lower in SHORT))
    if word or article or lower in JOINERS:
        return [Token("text", lower if lower in JOINERS else run, spaced)]
    return [Token("symbol", letter, spaced and not index) for index, letter in enumerate(run)]
