"""Reading an answer, LaTeX or plain, into a value: formula, list, set, point, interval, matrix, equation, words.

Nothing is ever evaluated as code. `read` gives None for what is not in this small language, and raises `TooBig` for
what would take too much time or memory.
"""

import re
from dataclasses import replace
from functools import lru_cache
from itertools import product

from grpo_math.grading.algebra import Ratio, TooBig, Unreadable, atom, number
from grpo_math.grading.formula import ATOMS, STARTS, Parser, literal
from grpo_math.grading.quantity import STOP, is_sum, read_expression
from grpo_math.grading.tokens import (
    CLOSING,
    JOINERS,
    LETTERS,
    OPENING,
    PLAIN,
    PLAIN_MACROS,
    UNITS,
    Token,
    tokens,
    wrapped,
    written,
)
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
MATRIX = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
WORDY = re.compile(r"[^\d\\=<>|^_+]*")
BASE = re.compile(
    r"(-?)\(?\"?([0-9A-F]+(?:\.[0-9A-F]+)?)\"?\)?\s*(?:_\s*\{?\s*\(?\"?\s*(?:base )?\s*|\"?\(?\s*base\s*\"?)"
    r"\{?\s*(\d+|[a-z]+)\s*\"?\)?\s*\}?\"?\)?"
)
NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16,
}  # fmt: skip
REALS = re.compile(r'"?(?:all )?real(?: number)?s"?|\\mathbb ?\{?R\}?')
CALLED = tuple("fghpqFGHPQESTV")  # names of functions
NAMING = ATOMS | {r"\angle", r"\triangle", r"\overline", r"\overrightarrow", r"\measuredangle"}
MAX_CASES = 2  # plus-minus signs in one value
CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)


CLOSES = {"(": ")", "[": "]"}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx"}
STRUCTURE = RELATIONS | {",", ";", ":", r"\cup", r"\in", r"\pm", r"\mp", ")", "]", r"\}"}
TURNED = {">": "<", r"\ge": r"\le", "=": "="}
ROUNDING = {r"\lfloor", r"\rfloor", r"\lceil", r"\rceil"}
UNEVALUATED = {r"\sum", r"\prod", r"\int", r"\lim"}
KNOWN = STARTS | RELATIONS | OPENING | CLOSING | {r"\cdot", r"\pm", r"\mp", r"\cup", r"\in", r"\degree"}
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


def unknown(text: str) -> set[str]:
    """The macros that `read` does not know; a text without any that it cannot read is broken, or words."""
    return {token.text for token in tokens(text) if token.kind == "macro"} - KNOWN


def wordy(text: str) -> bool:
    return any(token.kind == "text" for token in tokens(text)) or WORD.search(text) is not None


def read_whole(text: str) -> object:
    if not text:
        raise Unreadable
    if plain := PLAIN.fullmatch(text):  # the short way
        value = literal(plain[2])
        return Expression(-value if plain[1] else value, decimals=len(plain[3]) if plain[3] else None)
    if REALS.fullmatch(text):
        return Tuple("(", (Expression(-INFINITY), Expression(INFINITY)), ")")
    least = 3 if re.search("[-*/]", text) else 2  # letters of a word: ab - c is a formula
    if WORDY.fullmatch(text) and not LETTERS.fullmatch(text) and re.search(f"[A-Za-z]{{{least}}}", text):
        runs = re.findall("[A-Za-z]+", text)
        if not (any(run in PLAIN_MACROS for run in runs) or re.fullmatch("[b-df-hj-np-tv-z]{2,3}", text)):
            return read_words(text)
    if ratio := re.fullmatch(r'(\d+) ?"?to"? ?(\d+)', text):
        return Proportion((Expression(number(int(ratio[1]))), Expression(number(int(ratio[2])))))
    if (based := BASE.fullmatch(text)) and (based[3].isdigit() or based[3] in NUMBERS):
        return BaseNumber(based[1] + based[2], NUMBERS.get(based[3]) or int(based[3]))
    if clock := CLOCK.fullmatch(text.replace('"', "")):
        hour, minute, second, half = clock.groups()
        return Clock(int(hour), int(minute), int(second) if second else None, half and half.lower())
    if r"\begin" in text:
        return read_matrix(text)
    cut = tokens(text)
    if len(cut) == 1 and cut[0].kind == "text":
        return read_words(cut[0].text)
    return read_list(cut)


def read_words(text: str) -> Text | Expression:
    words = re.sub(r"[^\w*/-]+", " ", text).strip().lower()
    return Expression(number(NUMBERS[words])) if words in NUMBERS else Text(words)


def read_matrix(text: str) -> object:
    found = MATRIX.search(text)
    if not found:
        raise Unreadable
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if "=" in before:
        name, _, before = before.rpartition("=")
        before = before.strip()
        if not is_name(tokens(name)):
            raise Unreadable
    if bracketed := (before, after) in {("(", ")"), ("[", "]")}:
        before = ""
    if after and not bracketed:
        raise Unreadable
    scale = tokens("-1" if before == "-" else before or "1")
    if is_sum(scale):
        raise Unreadable
    factor = Parser(scale).whole()
    rows = [row.split("&") for row in found[2].split(r"\\") if row.strip()]
    if any(len(row) != len(rows[0]) for row in rows):
        raise Unreadable
    return Matrix(tuple(tuple(read_cell(cell, factor) for cell in row) for row in rows))


def read_cell(cell: str, factor: Ratio) -> Expression:
    value = read_list(tokens(cell.strip()))
    if not isinstance(value, Expression):
        raise Unreadable
    return replace(value, value=value.value * factor)


def is_structured(cut: list[Token]) -> bool:
    return not cut or any(
        token.text in STRUCTURE or (token.kind == "text" and token.text.strip(" ,").lower() in JOINERS) for token in cut
    )


def read_list(cut: list[Token]) -> object:
    if not is_structured(cut) and cut[0].text not in OPENING:
        return read_expression(cut)
    parts, commas = split(cut, {",", ";", *JOINERS})
    if not commas:
        return read_relation(cut)
    values = [read_relation(part) for part in parts if part]
    names = {value.name for value in values if isinstance(value, Equation)}
    if len(names) == len(values) > 1 and None not in names:
        usual = names <= {"x", "y", "z"}
        return Several(tuple(sorted(values, key=lambda value: value.name) if usual else values), "named")
    inequalities = all(any(token.text in RELATIONS - {"="} for token in part) for part in parts if part)
    union = inequalities and set(commas) == {"or"}
    return several(map(value_of, values), "union" if union else "list")


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
    """Whether it can only name a value: x, x_1, f(x), P(X = 2), (x, y), AB, some words; no arithmetic."""
    if wrapped(cut) and cut[0].text == "(":
        texts = written(cut[1:-1])
        kinds = all(token.kind in ("symbol", "number") or token.text in ATOMS | set(",_{}") for token in cut[1:-1])
        return kinds and "," in texts
    text = " ".join(written(cut))
    if text[:1] in CALLED:
        text = text.replace("^ { - 1 } ", "")
        text = text[0] if re.fullmatch(r". (?:_ \S+ )?(?:' )*\(.*\)", text) else text
    outside = re.sub(r"_ ?(?:\{[^{}]*\}|\S+)", "", text)  # but for subscripts
    for token in cut:
        if token.kind == "macro" and token.text not in NAMING and token.text in outside:
            return False
        if token.kind == "text" and STOP & set(token.text.lower().split()):
            return False
    letters = [word for word in outside.split() if word in ATOMS or (len(word) == 1 and word.islower())]
    if len(letters) > (0 if "|" in outside else 1):  # AB is a segment, ab a product
        return False
    return bool(cut) and not re.search(r"[-+/^!?=<>,;%()\d]", outside)


def read_equation(parts: list[list[Token]]) -> object:
    if not parts[0]:  # = 5
        return read_equation(parts[1:]) if len(parts) > 2 else read_union(parts[1])
    right, left = read_union(parts[-1]), None
    for part in parts[-2::-1]:
        try:
            left = read_union(part)
        except Unreadable:
            left = None
            continue
        numbers = constant(left) and constant(right)
        if written(part) == written(parts[-1]) or (numbers and not same_constant(left, right)):
            return Nothing()
    name = "".join(written(parts[0])) if is_name(parts[0]) else None
    return Equation(name, is_known(parts[0], left), left, right)


def is_known(cut: list[Token], left: object) -> bool:
    """Whether a left side holds no variable, so that it is a calculation: f(2) + f(3), or 20% * 90, or a sum."""
    if isinstance(left, Expression):
        return not left.value.variables()
    texts = {word for token in cut if token.kind == "text" for word in token.text.split()}
    macros = {token.text for token in cut if token.kind == "macro"}
    if cut[0].text in UNEVALUATED:
        return True
    return any(token.kind == "number" for token in cut) and not (
        any(token.kind == "symbol" for token in cut) or texts - UNITS.keys() or macros - KNOWN - ROUNDING
    )


def same_constant(left: Expression, right: Expression) -> bool:
    return not (left.value - right.value).numerator


def read_inequality(parts: list[list[Token]], relations: list[str]) -> object:
    if any(relation in (">", r"\ge") for relation in relations):
        if not all(relation in TURNED for relation in relations):
            raise Unreadable
        parts, relations = parts[::-1], [TURNED[relation] for relation in relations[::-1]]
    values = [read_union(part) for part in parts]
    if not all(isinstance(value, Expression) for value in values):
        raise Unreadable
    if len(values) > 2:
        ends = constant(values[0]) and constant(values[-1])
        if len(values) > 3 or not ends or len(parts[1]) > 1 or r"\ne" in relations or "=" in relations:
            return Tuple(" ".join(relations), tuple(values), "")
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
    signs = sum(token.text in (r"\pm", r"\mp") for token in cut)
    if signs and not (wrapped(cut) and cut[0].text == r"\{"):
        return several(read_item(case) for case in cases(cut, signs))
    if wrapped(cut):
        opening, inner, closing = cut[0].text, cut[1:-1], cut[-1].text
        if opening == "{":
            return read_list(inner)
        if opening == r"\{":
            such, bar = split(inner, {"|", ":"})
            if len(bar) == 1 and is_name(such[0]):  # the x such that
                return read_list(such[1])
            parts, _ = split(inner, {",", ";", *JOINERS})
            items = several((value_of(read_relation(part)) for part in parts if part), "set")
            return items.items[0] if len(items.items) == 1 else items
        parts, commas = split(inner, {",", ";"})
        if commas:
            opening, closing = ("(", ")") if opening == r"\langle" else (opening, closing)
            return Tuple(opening, tuple(value_of(read_relation(part)) for part in parts), closing)
    parts, colons = split(cut, {":"})
    if colons:
        return Proportion(tuple(read_expression(part) for part in parts))
    return read_expression(cut)


def cases(cut: list[Token], signs: int) -> list[list[Token]]:
    r"""What plus-minus signs stand for: each \pm is free, unless a \mp ties them together."""
    if any(token.text == r"\mp" for token in cut):
        choices = [{r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}]
        return [[token._replace(text=choice.get(token.text, token.text)) for token in cut] for choice in choices]
    if signs > MAX_CASES:
        raise TooBig
    found = []
    for choice in product("+-", repeat=signs):
        left = iter(choice)
        found.append([token._replace(text=next(left)) if token.text == r"\pm" else token for token in cut])
    return found
