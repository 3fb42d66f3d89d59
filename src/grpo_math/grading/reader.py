"""Reading an answer, LaTeX or plain, into a value: formula, list, set, point, interval, matrix, equation, words.

Nothing is ever evaluated as code. `read` gives None for what is not in this small language. It raises `TooBig` for what
would take too much time or memory, and `Meaningless` for a statement that is false or says nothing.
"""

import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product
from math import inf

from grpo_math.grading import tokens as tk
from grpo_math.grading.algebra import Meaningless, TooBig, Unreadable, apart, number
from grpo_math.grading.formula import END, OVER, STARTS, Parser, is_sum, literal, read_expression
from grpo_math.grading.tokens import CLOSING, JOINERS, OPENING, Token, tokens, wrapped, written
from grpo_math.grading.units import STOP, TABLES, UNITS
from grpo_math.grading.values import (
    BRACKETS,
    REALS,
    SIGNS,
    Equation,
    Expression,
    Group,
    RealSet,
    Text,
    as_set,
    combined,
    infinite,
    solved,
    value_of,
)

MAX_CHARACTERS = 1_000  # of an answer: no gold of GSM8K or MATH comes near it
DIGITS = 12  # of a decimal that double precision is compared with
NO_NAMES = STOP - set(TABLES["stop"]["bounds_and_comparisons"].split())
MAX_CASES = 2  # plus-minus signs in one value
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
SETS = {r"\mathbb{R}": REALS, r"\varnothing": Text("empty set")}
WORDS = (
    {name: SETS[sign] for sign, names in TABLES["sets"].items() for name in names.split("|")}
    | {name: Expression(number(value)) for name, value in NUMBERS.items()}
    | {"noon": Group("clock", (12, 0, 0, "p")), "midnight": Group("clock", (12, 0, 0, "a"))}
)
NAMING = (tk.ATOMS - {r"\pi"}) | tk.ACCENTS | {r"\angle", r"\triangle", r"\measuredangle"}
NAME = re.compile("|".join(TABLES["names"].values()))
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx"}
STRUCTURE = {*",;:)]", r"\}", r"\in", r"\pm", r"\mp", r"\varnothing", r"\mathbb"} | RELATIONS | SIGNS.keys() | JOINERS
SIGNED = {r"\pm": {"+": "+", "-": "-"}, r"\mp": {"+": "-", "-": "+"}}
TURNED = {">": "<", r"\ge": r"\le", "=": "="}
CALCULATIONS = {r"\lfloor", r"\rfloor", r"\lceil", r"\rceil", r"\bmod", r"\mod", r"\cdots", r"\ldots", r"\dots"}
UNEVALUATED = {r"\sum", r"\prod", r"\int", r"\lim"}
KNOWN = STARTS | RELATIONS | OPENING | CLOSING | OVER.keys() | {r"\cdot", r"\pm", r"\mp", r"\cup", r"\in", r"\degree"}
Cut = list[Token]


def split(cut: Cut, at: set[str]) -> tuple[list[Cut], list[str]]:
    """The parts between the separators that stand outside all brackets, and the separators."""
    parts, found, depth = [[]], [], 0
    for token in cut:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if not depth and token.kind != "symbol" and token.text in at:
            parts.append([])
            found.append(token.text)
        else:
            parts[-1].append(token)
    if depth:
        raise Unreadable("brackets do not match")
    return parts, found


@lru_cache(maxsize=2**15)
def read(text: str) -> object | None:
    """The value of a normalised answer, None where it is not in the language; raises TooBig and Meaningless."""
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
    if plain := tk.PLAIN.fullmatch(text):  # the short way
        value = literal(plain[2])
        return Expression(-value if plain[1] else value, decimals=len(plain[3] or ""))
    least = 3 if re.search("[-*/]", text) else 2  # letters of a word: ab - c is a formula
    if WORDY.fullmatch(text) and not tk.LETTERS.fullmatch(text) and re.search(f"[A-Za-z]{{{least}}}", text):
        runs = re.findall("[A-Za-z]+", text)
        if not (any(run in tk.PLAIN_MACROS for run in runs) or re.fullmatch("[b-df-hj-np-tv-z]{2,3}", text)):
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
    if len(cut) == 1 and cut[0].kind == "text":
        return read_words(cut[0].text)
    return read_list(cut)


def read_words(text: str) -> object:
    words = re.sub(r"[^\w*/-]+", " ", text).strip().lower()
    return WORDS.get(words) or Text(words)


def read_matrix(text: str) -> object:
    found = MATRIX.search(text)
    if not found:
        raise Unreadable
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if "=" in before:
        name, _, before = map(str.strip, before.rpartition("="))
        if not is_name(tokens(name)):
            raise Unreadable
    if bracketed := (before, after) in {("(", ")"), ("[", "]")}:
        before = ""
    scale = tokens("-1" if before == "-" else before or "1")
    if (after and not bracketed) or is_sum(scale):
        raise Unreadable
    factor = Parser(scale).whole()
    rows = [row.split("&") for row in found[2].split(r"\\") if row.strip()]
    cells = [read_list(tokens(cell.strip())) for row in rows for cell in row]
    if len({len(row) for row in rows}) != 1 or not all(isinstance(cell, Expression) for cell in cells):
        raise Unreadable
    cells = [replace(cell, value=cell.value * factor, other_reading=None) for cell in cells]
    return Group(f"{len(rows)}x{len(rows[0])}", tuple(cells))


def read_list(cut: Cut) -> object:
    """Values between commas, semicolons, `and` and `or`; a single one is itself."""
    if cut and cut[0].text not in OPENING and not any(token.text in STRUCTURE for token in cut):
        return read_expression(cut)  # the short way
    parts, joins = split(cut, {",", ";", *JOINERS})
    if not joins:
        return read_relation(cut)
    parts = [part for part, after in zip(parts, [*joins, ","], strict=True) if part or after not in JOINERS]  # ", and"
    values = list(map(read_relation, parts))
    names = {value.name for value in values if isinstance(value, Equation)}
    if len(names) == len(values) > 1 and None not in names:
        return named(values)
    if any(isinstance(value, RealSet) for value in values):
        return read_conditions(values, parts, set(joins))
    return group("cases" if "or" in joins else "list", map(value_of, values))


def named(equations: list[Equation]) -> Group:
    """Values by their names; x, y and z in this order, others as they come."""
    usual = {equation.name for equation in equations} <= {"x", "y", "z"}
    return Group("named", tuple(sorted(equations, key=lambda one: one.name) if usual else equations))


def read_conditions(values: list, parts: list[Cut], joins: set[str]) -> object:
    """Inequalities of one variable: their union for `or`, else their intersection. A comma means `or` where both cannot
    hold. For several variables, one condition per variable."""
    sets = list(map(as_set, values))
    letters = [{token.text for token in part if token.kind == "symbol"} - {"e"} for part in parts]
    if len(set().union(*letters)) > 1:
        ordered = sorted(("".join(sorted(one)), place) for place, one in enumerate(letters))
        if "or" in joins or len(dict(ordered)) < len(values):
            raise Unreadable
        return Group(f"conditions {' '.join(dict(ordered))}", tuple(values[place] for _, place in ordered))
    numbers = any(isinstance(value, Expression) for value in values)
    if numbers or None in sets or ("or" in joins and len(joins) > 1):
        return group("cases" if "or" in joins else "list", map(value_of, values))
    try:
        return combined(r"\cup" if "or" in joins else r"\cap", sets)
    except Unreadable:
        if "and" in joins:
            raise Meaningless from None
        return combined(r"\cup", sets)


def group(kind: str, values) -> Group:
    """Build a group and flatten nested lists."""
    items = []
    for value in values:
        items += value.items if isinstance(value, Group) and value.kind in ("list", "cases") else [value]
    return Group(kind, tuple(items))


def read_relation(cut: Cut) -> object:
    member, _ = split(cut, {r"\in"})
    if len(member) == 2 and is_name(member[0]):
        value = read_relation(member[1])
        return as_set(value) or value if isinstance(value, Group) and value.kind in BRACKETS else value
    parts, relations = split(cut, RELATIONS)
    if not relations:
        return read_set(cut)
    if r"\approx" in relations:
        return read_approximation(split(cut, {r"\approx"})[0])
    if set(relations) == {"="}:
        return read_equation(parts)
    return read_inequality(parts, relations)


def read_approximation(parts: list[Cut]) -> object:
    """The exact side of a chain of approximations, if the decimals are roundings of it; the value of a name."""
    parts = parts[1:] if is_name(parts[0]) else parts
    values = list(map(read_relation, parts))
    numbers = list(map(value_of, values))
    if not all(isinstance(value, Expression) for value in numbers):
        raise Unreadable
    exact = next((place for place, value in enumerate(numbers) if value.decimals is None), 0)
    if not all(agrees(numbers[exact], value) for value in numbers[:exact] + numbers[exact + 1 :]):
        raise Meaningless
    return values[exact]


def agrees(exact: Expression, rounded: Expression) -> bool:
    """Whether a decimal is the exact value rounded or cut off behind its last place."""
    value, near = exact.value.near(), rounded.value.near()
    if rounded.decimals is None or None in (value, near) or isinstance(value, complex):
        raise Unreadable
    if "%" in rounded.units and "%" not in exact.units:
        value *= 100
    elif rounded.units and rounded.units != exact.units:
        return False
    excess = (abs(near) - abs(value)) * 10 ** min(rounded.decimals, DIGITS)
    return near * value >= 0 and -1 + 1e-6 < excess <= 0.5 + 1e-6


def is_name(cut: Cut) -> bool:
    """Whether it can only name a value: x, x_1, f(x), P(X = 2), (x, y), AB, some words; no arithmetic."""
    if any(token.kind == "text" and NO_NAMES & set(token.text.lower().split()) for token in cut):
        return False
    texts = [f'"{token.text}"' if token.kind == "text" else token.text for token in cut]
    letters = [
        " " * (len(one) > 1 and one[0] == "\\" and other[0].isalpha()) + other for one, other in pairwise(["", *texts])
    ]
    if NAME.fullmatch("".join(letters)):
        return True
    outside = re.sub(r"_ ?(?:\{[^{}]*\}|\S+)", "", " ".join(written(cut)))  # but for subscripts
    if any(token.kind == "macro" and token.text not in NAMING and token.text in outside for token in cut):
        return False
    letters = [word for word in outside.split() if word in tk.ATOMS or (len(word) == 1 and word.islower())]
    if len(letters) > (0 if "|" in outside else 1):  # AB is a segment, ab a product
        return False
    return bool(cut) and not re.search(r"[-+/^!?=<>,;%()\d]", outside)


def read_equation(parts: list[Cut]) -> object:
    if not parts[0]:  # = 5
        return read_equation(parts[1:]) if len(parts) > 2 else read_set(parts[1])
    if len(parts) == 2 and is_name(parts[1]) and not is_name(parts[0]):  # 5 = x
        parts = parts[::-1]
    right, sides = read_set(parts[-1]), []
    name = "".join(written(parts[0])) if is_name(parts[0]) else None
    for place, part in enumerate(parts[:-1]):
        if written(part) == written(parts[-1]):
            raise Meaningless
        try:
            sides.append(read_set(part))
        except Unreadable:
            sides.append(None)
            continue
        numbers = isinstance(sides[-1], Expression) and isinstance(right, Expression)
        false = apart(sides[-1].value.near(), right.value.near()) if numbers else type(sides[-1]) is not type(right)
        if false and place >= (1 if name or not numbers else 0):
            raise Meaningless
    names = name.strip("()").split(",") if name and name[0] == "(" else []
    if isinstance(right, Group) and right.kind == "()" and len(names) == len(right.items):  # (x,y) = (1,2)
        return named([Equation(one, False, (None, value)) for one, value in zip(names, right.items, strict=True)])
    return Equation(name, is_known(parts[0], sides[0]), (*sides, right))


def is_known(cut: Cut, left: object) -> bool:
    """Whether a left side holds no variable, so that it is a calculation: f(2) + f(3), or 20% * 90, or a sum."""
    if isinstance(left, Expression):
        return not left.value.variables()
    if cut[0].text in UNEVALUATED:
        return True
    texts = {
        word
        for before, token in pairwise((END, *cut))
        for word in (token.text.split() if token.kind == "text" else ())
        if word in STOP or (before.kind != "number" and before.text != "/")  # 5 eggs, $2/egg
    }
    macros = {token.text for token in cut if token.kind == "macro"}
    return any(token.kind == "number" or token.text in (r"\pi", "e") for token in cut) and not (
        any(token.kind == "symbol" and token.text not in "ei" for token in cut)
        or texts - UNITS.keys() - {"mod"}
        or macros - KNOWN - CALCULATIONS
    )


def read_inequality(parts: list[Cut], relations: list[str]) -> object:
    if any(relation in (">", r"\ge") for relation in relations):
        if not all(relation in TURNED for relation in relations):
            raise Unreadable
        parts, relations = parts[::-1], [TURNED[relation] for relation in relations[::-1]]
    values = [read_set(part) for part in parts]
    if not all(isinstance(value, Expression) for value in values):
        raise Unreadable
    if values[0].value.near() == inf or values[-1].value.near() == -inf:
        raise Meaningless
    if not any(value.value.variables() for value in values):
        return Group(f"chain {' '.join(relations)}", tuple(values))
    steps = [
        (left, relation, right)
        for (left, right), relation in zip(pairwise(values), relations, strict=True)
        if not (infinite(left.value) or infinite(right.value))
    ]
    sets = [solved(*step) for step in steps]
    if None not in sets:
        return combined(r"\cap", sets or [REALS])
    if len(steps) == 1:
        left, relation, right = steps[0]
        return Group(relation, (Expression(right.value - left.value),))
    return Group(f"chain {' '.join(relations)}", tuple(values))


def read_set(cut: Cut) -> object:
    r"""Sets between \cup, \cap and \setminus."""
    parts, signs = split(cut, SIGNS.keys())
    values = list(map(read_item, parts))
    if not signs:
        return values[0]
    sets = list(map(as_set, values))
    if None not in sets:
        found = sets[0]
        for sign, one in zip(signs, sets[1:], strict=True):
            found = combined(sign, [found, one])
        return found if any(found.cells[::2]) else Group("set", tuple(map(Expression, found.ends)))  # points
    if set(signs) != {r"\cup"}:
        raise Unreadable
    return group("union", values)


def read_item(cut: Cut) -> object:
    if (text := "".join(written(cut))) in SETS:
        return SETS[text]
    signs = sum(token.text in SIGNED for token in cut)
    if signs and not (wrapped(cut) and cut[0].text == r"\{"):
        return group("cases", map(read_item, cases(cut, signs)))
    if wrapped(cut):
        opening, inner, closing = cut[0].text, cut[1:-1], cut[-1].text
        if opening == "{":
            return read_list(inner)
        if opening == r"\{":
            such, bar = split(inner, {"|", ":"})
            if len(bar) == 1:
                return read_builder(*such)
            parts, _ = split(inner, {",", ";", *JOINERS})
            return group("set", (value_of(read_relation(part)) for part in parts))
        parts, commas = split(inner, {",", ";"})
        if commas:
            kind = "()" if opening == r"\langle" else opening + closing
            return Group(kind, tuple(value_of(read_relation(part)) for part in parts))
    parts, colons = split(cut, {":"})
    return Group(":", tuple(map(read_expression, parts))) if colons else read_expression(cut)


def read_builder(variable: Cut, condition: Cut) -> object:
    r"""\{x : x > 2\} and \{x \in \mathbb{R} \mid x > 2\}."""
    found = read_list(condition)
    if any(token.text == "(" for token in variable):
        raise Unreadable("pairs of numbers, or values of a function")
    if is_name(variable):
        return found
    name, *base = split(variable, {r"\in"})[0]
    sets = [as_set(found), *(as_set(read_item(part)) for part in base)]
    if not is_name(name) or None in sets:
        raise Unreadable
    return combined(r"\cap", sets)


def cases(cut: Cut, signs: int) -> list[Cut]:
    r"""What plus-minus signs stand for: each \pm is free, unless a \mp ties them all together."""
    tied = any(token.text == r"\mp" for token in cut)
    if signs > MAX_CASES and not tied:
        raise TooBig
    choices = ("+" * signs, "-" * signs) if tied else product("+-", repeat=signs)
    return [
        [token._replace(text=SIGNED[token.text][next(left)]) if token.text in SIGNED else token for token in cut]
        for left in map(iter, choices)
    ]
