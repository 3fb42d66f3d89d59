"""Reading an answer, LaTeX or plain, into a value: formula, list, set, point, interval, matrix, equation, words.

Nothing is ever evaluated as code. `read` gives None for what is not in this small language, and raises `TooBig` for
what would take too much time or memory.
"""

import re
from functools import lru_cache

from grpo_math.grading.algebra import Ratio, TooBig, Unreadable, atom, number
from grpo_math.grading.formula import STARTS, Parser, literal
from grpo_math.grading.tokens import FUNCTIONS, JOINERS, UNITS, Token, tokens
from grpo_math.grading.values import (
    BaseNumber,
    Clock,
    Equation,
    Expression,
    Inequality,
    Matrix,
    Nothing,
    Proportion,
    Several,
    Text,
    Tuple,
    constant,
)

MAX_CHARACTERS = 1_000  # of an answer: no gold of GSM8K or MATH comes near it
MATRIX = re.compile(r"\\begin\{([pbvB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
PLAIN = re.compile(r"(-?)((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.(\d+))?)")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
WORDY = re.compile(r"[^\d\\=<>|^_+]*")
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)


OPENING, CLOSING = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}
CLOSES = {"(": ")", "[": "]"}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx"}
KNOWN = STARTS | RELATIONS | OPENING | CLOSING | {r"\cdot", r"\pm", r"\mp", r"\cup", r"\in"}
INFINITY = atom(r"\infty")


def split(cut: list[Token], at: set[str]) -> tuple[list[list[Token]], list[str]]:
    """The parts between the separators that stand outside all brackets, and the separators."""
    parts, found, depth = [[]], [], 0
    for token in cut:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if not depth and token.kind != "symbol" and (token.text in at or token.text.strip(" ,").lower() in at):
            parts.append([])
            found.append(token.text)
        else:
            parts[-1].append(token)
    if depth:
        raise Unreadable("brackets do not match")
    return parts, found


def wrapped(cut: list[Token]) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for index, token in enumerate(cut):
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if depth <= 0:
            return index == len(cut) - 1 > 0 and token.text in CLOSING
    return False


@lru_cache(maxsize=2**15)
def read(text: str) -> object | None:
    """The value of a normalised answer, None where it is not in the language; raises TooBig."""
    if len(text) > MAX_CHARACTERS:
        raise TooBig
    try:
        return read_whole(text)
    except Unreadable:
        return None
    except RecursionError:
        raise TooBig from None


def broken(text: str) -> bool:
    """Whether a text that `read` cannot read has no macro but those it knows: words, or broken syntax."""
    return all(token.kind != "macro" or token.text in KNOWN for token in tokens(text))


def wordy(text: str) -> bool:
    return any(token.kind == "text" for token in tokens(text)) or WORD.search(text) is not None


def read_whole(text: str) -> object:
    if not text:
        raise Unreadable
    if plain := PLAIN.fullmatch(text):  # most answers of GSM8K: read them the short way
        value = literal(plain[2])
        return Expression(-value if plain[1] else value, decimals=len(plain[3]) if plain[3] else None)
    if WORDY.fullmatch(text) and re.search("[A-Za-z]{3}" if re.search("[-*/]", text) else "[A-Za-z]{2}|^\\(", text):
        return Text(re.sub(r"\W+", " ", text).strip().lower())
    if clock := CLOCK.fullmatch(text.replace('"', "")):
        hour, minute, second, half = clock.groups()
        return Clock(int(hour), int(minute), int(second) if second else None, half and half.lower())
    if r"\begin" in text:
        return read_matrix(text)
    cut = tokens(text)
    if len(cut) == 1 and cut[0].kind == "text":
        return Text(re.sub(r"[^\w]+", " ", cut[0].text).strip().lower())
    return read_list(cut)


def read_matrix(text: str) -> object:
    found = MATRIX.search(text)
    if not found:
        raise Unreadable
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if "=" in before:
        before = before.rpartition("=")[2].strip()
    if (before, after) not in {("", ""), ("(", ")"), ("[", "]"), ("|", "|")}:
        raise Unreadable
    rows = [row.split("&") for row in found[2].split(r"\\") if row.strip()]
    if any(len(row) != len(rows[0]) for row in rows):
        raise Unreadable
    return Matrix(tuple(tuple(read_list(tokens(cell.strip())) for cell in row) for row in rows))


def read_list(cut: list[Token]) -> object:
    parts, commas = split(cut, {",", ";", *JOINERS})
    if not commas:
        return read_relation(cut)
    return several(value_of(read_relation(part)) for part in parts if part)


def several(items, kind: str = "list") -> Several:
    """The items, with lists among them opened."""
    flat = []
    for item in items:
        flat += item.items if isinstance(item, Several) and item.kind == "list" else [item]
    return Several(tuple(flat), kind)


def value_of(value: object) -> object:
    """What an equation says: x = 3 says 3."""
    return value.right if isinstance(value, Equation) and value.name else value


def read_relation(cut: list[Token]) -> object:
    member, _ = split(cut, {r"\in"})
    if len(member) == 2 and is_name(member[0]):
        return read_relation(member[1])
    parts, relations = split(cut, RELATIONS)
    if not relations:
        return read_union(cut)
    if r"\approx" in relations:
        at = relations.index(r"\approx")
        exact = split(cut, {r"\approx"})[0][0]
        return read_union(parts[1]) if at == 0 and is_name(exact) else read_relation(exact)
    if set(relations) == {"="}:
        return read_equation(parts)
    return read_inequality(parts, relations)


def is_name(cut: list[Token]) -> bool:
    """Whether it can only name a value: x, x_1, f(x), P(A), AB, some words; no arithmetic."""
    if not cut or cut[0].kind not in ("symbol", "text", "macro") or cut[0].text in FUNCTIONS | {r"\frac", r"\sqrt"}:
        return wrapped(cut) and len(cut) > 2 and all(token.kind == "symbol" or token.text in "()," for token in cut)
    before = ""
    for token in cut:
        if token.text in {"+", "-", "/", "^", "!", r"\cdot"} or (
            token.kind == "number" and before not in ("_", "{", "(")
        ):
            return False
        before = token.text
    return True


def read_equation(parts: list[list[Token]]) -> Equation | Nothing:
    right, left = read_union(parts[-1]), None
    for part in parts[-2::-1]:
        try:
            left = read_union(part)
        except Unreadable:
            left = None
            continue
        if written(part) == written(parts[-1]) or (
            constant(left) and constant(right) and not same_constant(left, right)
        ):
            return Nothing()
    asked = constant(left) or not any(token.kind == "number" for token in parts[0])
    return Equation(is_name(parts[0]), asked, left, right)


def written(cut: list[Token]) -> list[str]:
    return [token.text for token in cut]


def same_constant(left: Expression, right: Expression) -> bool:
    return not (left.value - right.value).numerator


def read_inequality(parts: list[list[Token]], relations: list[str]) -> object:
    if any(relation in (">", r"\ge") for relation in relations):
        if not all(relation in (">", r"\ge") for relation in relations):
            raise Unreadable
        parts, relations = parts[::-1], [{">": "<", r"\ge": r"\le"}[relation] for relation in relations[::-1]]
    values = [read_union(part) for part in parts]
    if not all(isinstance(value, Expression) for value in values) or "=" in relations or len(values) > 3:
        raise Unreadable
    if len(values) == 3:
        if r"\ne" in relations or len(parts[1]) > 1 or not (constant(values[0]) and constant(values[2])):
            raise Unreadable
        opening, closing = ("[" if relation == r"\le" else "(" for relation in relations)
        return Tuple(opening, (values[0], values[2]), CLOSES[closing])
    value = values[1].value - values[0].value
    return interval(value, relations[0]) or Inequality(value, relations[0])


def interval(value: Ratio, relation: str) -> Tuple | None:
    """The x with value > 0 (or >= 0), where value is a*x + b with numbers a and b: x > 3 is (3, infinity)."""
    symbols = {name for monomial in (*value.numerator, *value.denominator) for name, _ in monomial}
    symbols = {name for name in symbols if not atom(name).constant()}
    if len(symbols) != 1 or relation == r"\ne" or value.opaque:
        return None
    linear = ((symbols.pop(), 1),)
    rest = Ratio({monomial: factor for monomial, factor in value.numerator.items() if monomial != linear}, {(): 1})
    slope = value.numerator.get(linear, 0) * value.denominator.get((), 0)
    if not slope or not rest.constant() or value.denominator.keys() != {()}:
        return None
    end = Expression(-rest / number(value.numerator[linear]))
    if slope > 0:
        return Tuple("[" if relation == r"\le" else "(", (end, Expression(INFINITY)), ")")
    return Tuple("(", (Expression(-INFINITY), end), "]" if relation == r"\le" else ")")


def read_union(cut: list[Token]) -> object:
    parts, _ = split(cut, {r"\cup"})
    if len(parts) > 1:
        return several((read_item(part) for part in parts), "union")
    return read_item(cut)


def read_item(cut: list[Token]) -> object:
    if any(token.text in (r"\pm", r"\mp") for token in cut) and not (wrapped(cut) and cut[0].text == r"\{"):
        plus, minus = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"})
        cases = [[token._replace(text=case.get(token.text, token.text)) for token in cut] for case in (plus, minus)]
        return several(read_item(case) for case in cases)
    if wrapped(cut):
        opening, inner, closing = cut[0].text, cut[1:-1], cut[-1].text
        if opening == "{":
            return read_list(inner)
        if opening == r"\{":
            parts, _ = split(inner, {",", ";", *JOINERS})
            return several((value_of(read_relation(part)) for part in parts if part), "set")
        parts, commas = split(inner, {",", ";"})
        if commas:
            opening, closing = ("(", ")") if opening == r"\langle" else (opening, closing)
            return Tuple(opening, tuple(value_of(read_relation(part)) for part in parts), closing)
    parts, colons = split(cut, {":"})
    if colons:
        return Proportion(tuple(read_expression(part) for part in parts))
    texts = [token.text for token in cut if token.text not in "{}()"]
    if len(texts) == 3 and texts[1] == "_" and texts[0].isdigit() and texts[2].isdigit():
        return BaseNumber(texts[0], int(texts[2]))
    return read_expression(cut)


def read_expression(cut: list[Token]) -> Expression | Text:
    """A formula with what may stand behind it: %, and units in words."""
    if cut and all(token.kind == "text" for token in cut):
        return Text(" ".join(token.text.strip().lower() for token in cut))
    end = next((index for index in range(1, len(cut)) if is_unit(cut, index)), len(cut))
    units = cut[end:]
    if any(
        token.kind == "number" and before.text not in ("^", "{")
        for before, token in zip(cut[end - 1 :], units, strict=False)
    ):
        raise Unreadable("a number behind a unit")
    formula = cut[:end]
    percent = bool(formula) and formula[-1].text == "%"
    if percent:
        formula = formula[:-1]
    value = Parser(formula).whole()
    last = formula[-1].text if len(formula) == 1 or (len(formula) == 2 and formula[0].text == "-") else ""
    decimals = len(last.partition(".")[2]) if "." in last else None
    names = frozenset(UNITS[name] for token in units for name in re.findall(r"[A-Za-z]+", token.text) if name in UNITS)
    return Expression(value, percent, names, bare_value(formula), decimals)


def is_unit(cut: list[Token], at: int) -> bool:
    """Whether units begin here: words behind a blank, or the letters of `5 m/s`."""
    token = cut[at]
    if token.kind == "text":
        return token.spaced or token.text in UNITS or not token.text.isalpha()
    return token.kind == "symbol" and token.spaced and unit_letters(cut[at:])


def unit_letters(cut: list[Token]) -> bool:
    return all(token.text in UNITS or token.text in "/^23" for token in cut)


def bare_value(formula: list[Token]) -> Ratio | None:
    """Of `5m`, the 5: a number, and letters that may be units."""
    at = next((index for index, token in enumerate(formula) if token.kind == "symbol"), 0)
    if not (at and unit_letters(formula[at:])):
        return None
    try:
        return Parser(formula[:at]).whole()
    except Unreadable:
        return None
