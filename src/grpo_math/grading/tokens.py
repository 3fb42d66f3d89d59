r"""From an answer as written to tokens: `normalise` removes what never changes the value, `tokens` cuts."""

import re
import unicodedata
from typing import NamedTuple

UNICODE = {
    "−": "-", "–": "-", "‑": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "√": r"\sqrt ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ",
    "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx ", "’": "'", "“": '"', "”": '"', "¢": " cents",
    "€": " ", "£": " ", "¥": " ", "₹": " ",
}  # fmt: skip
PLAIN = re.compile(r"(-?)((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.(\d+))?)")  # most answers of GSM8K
STYLES = re.compile(
    r"\\(?:tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|rm|bf|it|tt|sf|underline|vec|(?:display|text)style|limits)(?![a-zA-Z])"
    r"|\\(?:text)?color\{[^{}]*\}|\\(?:black)?square(?![a-zA-Z])|(?<![a-zA-Z])\{\}|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?"
)
SPACES = re.compile(r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|enspace)(?![a-zA-Z])|\\hspace\{[^{}]*\}|&nbsp;")
DOLLARS = re.compile(r"\bUS(?=\s*\\?\$)|(?<!\\)\$|(?<!\\)\\[()\[\]]|\b(?:USD|Rs\.?) (?=\d)")
FRACTIONS = re.compile(r"\\(?:[dtc]|nice)frac")
ROWS = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:mm|cm|in|pt|em|ex)\s*\]")
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})|\\!")
DEGREES = re.compile(
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))(?:\s*(?:\\(?:text|mathrm)\s*\{\s*[CF]\s*\}|[CF]\b))?"
    r"|\\degrees?(?![a-zA-Z])"
)
REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*(?:\{(\d{1,20})\}|(\d))")
WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|boldsymbol|operatorname)"
    r"\s*\{([^{}\"]*)\}"
)
QUOTE = r"(?:\"(?!dollars))?"
LEAD = re.compile(
    rf"(?i)(?:{QUOTE}(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?(?:answer|total|result|value)"
    rf"(?: is| are|\s*[:=])+\s*{QUOTE}\s*(?=\S)|(?:\\approx|{QUOTE}(?:approximately|about|roughly|therefore)\b\"?)\s*)+"
)
LETTERS = re.compile(r"\(?[A-Za-z]\)?(?:(?:\s*(?:,|;|and\b|or\b))+\s*\(?[A-Za-z]\)?)+|\([A-Za-z]\)")
SYNONYMS = {
    r"\lt": "<", r"\gt": ">", r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge",
    r"\neq": r"\ne", r"\times": r"\cdot", r"\ast": r"\cdot", r"\div": "/", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\colon": ":",
    r"\varphi": r"\phi", r"\%": "%", "*": r"\cdot", "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "==": "=",
    r"\land": "and", r"\wedge": "and", r"\lor": "or", r"\vee": "or", r"\sim": r"\approx", r"\simeq": r"\approx",
    r"\emptyset": r"\varnothing", r"\#": "#", r"\&": "and", r"\union": r"\cup", "**": "^",
}  # fmt: skip
FUNCTIONS = {
    r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc", r"\arcsin", r"\arccos", r"\arctan", r"\arccot", r"\arcsec",
    r"\arccsc", r"\sinh", r"\cosh", r"\tanh", r"\ln", r"\log", r"\exp", r"\gcd", r"\max", r"\min",
}  # fmt: skip
PLAIN_MACROS = {macro[1:]: macro for macro in FUNCTIONS} | {
    "sqrt": r"\sqrt", "pi": r"\pi", "infty": r"\infty", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty",
    "frac": r"\frac", "theta": r"\theta", "percent": "%", "percentage": "%", "pct": "%",
}  # fmt: skip
TOKEN = re.compile(
    r"""(?P<space>\s*)(?:
      (?P<number>(?:[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)
    | (?P<macro>\\[a-zA-Z]+|\\.)
    | "(?P<text>[^"]*)"
    | (?P<letters>[a-zA-Z]+)
    | (?P<operator><=|>=|!=|==|\*\*|\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
UNITS = {
    alias: names.split()[0]
    for names in (
        "cm centimeter centimeters centimetre centimetres", "mm millimeter millimeters millimetre millimetres",
        "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "inch inches in",
        "foot feet ft", "yard yards yd yds", "mile miles mi", "gram grams g", "kg kilogram kilograms kgs",
        "mg milligram milligrams", "liter liters litre litres L l", "ml milliliter milliliters mL", "ounce ounces oz",
        "pound pounds lb lbs", "second seconds sec secs s", "minute minutes min mins", "hour hours hr hrs h",
        "day days", "week weeks", "month months", "year years yr yrs", "dollar dollars USD usd", "cent cents",
        "mph", "kph", "degree degrees", "radian radians", "gallon gallons gal", "euro euros EUR", "am", "pm",
    )
    for alias in names.split()
}  # fmt: skip
JOINERS = {"and", "or"}
SHORT = {"of", "at", "on", "an", "up", "by", "to", "is", "if", "am", "pm"}  # words of two letters
OPENING, CLOSING = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}


class Token(NamedTuple):
    kind: str  # number, symbol, macro, text, operator
    text: str
    spaced: bool  # a blank before it


def normalise(text: str) -> str:
    """Remove what never changes the value: styles, sizes, dollar signs, blanks that separate nothing, a last period."""
    if PLAIN.fullmatch(text):
        return text
    if not text.isascii():
        text = "".join(UNICODE.get(character) or plain(character) for character in text)
        text = text.replace("}^{", "").replace("}_{", "")  # of several raised digits
    text = THOUSANDS.sub("", text)
    if "\\" in text or "~" in text or "{}" in text or "&" in text:
        text = ROWS.sub(r"\\\\", text)
        text = STYLES.sub("", text)
        text = SPACES.sub(" ", text)
        text = FRACTIONS.sub(r"\\frac", text)
        text = DEGREES.sub(r" \\degree ", text)
        text = REPEATING.sub(repeating, text)
        text = WORDS.sub(lambda found: words(found[1]), text)
    text = DOLLARS.sub(" ", text).replace(r"\$", ' "dollars" ')
    text = re.sub(r"\s+", " ", text).strip()
    if text[:1] in ("*", "`") or text[-1:] in ("*", "`"):  # Markdown
        text = text.strip("*` ")
    if text[:1] == text[-1:] == '"' and text.count('"') == 2 and re.search(r"\d", text):
        text = text[1:-1]
    end = text.rstrip(".,;:\\ ")
    text = text if ".." in text[len(end) :] else end
    lead = LEAD.match(text)
    return text[lead.end() :].strip() if lead else text


def plain(character: str) -> str:
    """A fullwidth digit as a digit, ½ as ` 1/2`, ⁵ as `^{5}`, a Greek letter as its macro, nothing unseen."""
    normal, kind = unicodedata.normalize("NFKC", character), unicodedata.decomposition(character)
    normal = UNICODE.get(normal, normal)
    if kind.startswith("<super>"):
        return f"^{{{normal}}}"
    if kind.startswith("<sub>"):
        return f"_{{{normal}}}"
    if "\u2044" in normal:
        return " " + normal.replace("\u2044", "/")
    if (name := unicodedata.name(normal[:1] or " ", "")).startswith("GREEK SMALL LETTER "):
        return f"\\{name.rpartition(' ')[2].lower()} "
    return "" if unicodedata.category(character) == "Cf" else normal


def repeating(found: re.Match) -> str:
    r"""0.1\overline{6} as a fraction."""
    whole, before, again = found[1] or "0", found[2], found[3] or found[4]
    top = int(whole + before + again) - int(whole + before)
    return rf"\frac{{{top}}}{{{(10 ** len(again) - 1) * 10 ** len(before)}}}"


def words(content: str) -> str:
    """What a text macro holds: quoted, or as it is where there is something to read in it, such as 5 cm or A, B."""
    bare = content.strip()
    if bare in UNITS:
        return f' "{bare}" '
    if len(bare) < 2 or bare in JOINERS or re.search(r"[\d%$]", bare) or LETTERS.fullmatch(bare):
        return f" {content} "
    return f' "{bare}" '


def tokens(text: str) -> list[Token]:
    """Cut a normalised text; letters become single symbols, or words where they can be nothing else."""
    result: list[Token] = []
    depth = 0
    for found in TOKEN.finditer(text):
        kind, spaced = found.lastgroup, bool(found["space"])
        if found[kind] not in "{}":  # which only group
            depth += (found[kind] in OPENING) - (found[kind] in CLOSING)
        if kind == "letters":
            result += letters(found["letters"], spaced, result)
        elif kind == "operator":
            operator = SYNONYMS.get(found[kind], found[kind])
            result.append(Token("macro" if operator[0] == "\\" else kind, operator, spaced))
        elif kind == "macro":
            macro = SYNONYMS.get(found[kind], found[kind])
            kind = "text" if macro in JOINERS else "macro" if macro[0] == "\\" else "operator"
            result.append(Token(kind, macro, spaced))
        elif kind == "number" and depth and "," in found[kind]:  # (1,234) is a point
            result += [
                Token("operator" if part == "," else kind, part, spaced) for part in re.split("(,)", found[kind])
            ]
        elif kind != "space":
            result.append(Token(kind, found[kind], spaced))
    return result


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
    if macro := PLAIN_MACROS.get(lower if len(run) > 2 else run):
        return [Token("macro" if macro[0] == "\\" else "operator", macro, spaced)]
    behind = spaced and bool(before) and before[-1].kind in ("number", "text") and not set(lower) <= set("abcdxyz")
    article = run == "a" and spaced and bool(before) and before[-1].kind == "text"
    word = len(run) > 3 or (len(run) > 1 and run in UNITS) or (behind and (len(run) == 3 or lower in SHORT))
    if word or article or lower in JOINERS:
        return [Token("text", run, spaced)]
    return [Token("symbol", letter, spaced and not index) for index, letter in enumerate(run)]
