"""From tokens to a value: lists, relations, sets, points and intervals, down to the formulas in them."""

import re
from collections.abc import Iterable
from itertools import chain, pairwise, product

from grpo_math.grading.algebra import Meaningless, TooBig, Unreadable, apart
from grpo_math.grading.formula import END, OVER, STARTS, read_expression
from grpo_math.grading.tokens import ACCENTS, ATOMS, CLOSING, JOINERS, OPENING, Token, wrapped, written
from grpo_math.grading.units import STOP, TABLES, UNITS
from grpo_math.grading.values import (
    SETS,
    SIGNS,
    Answer,
    Equation,
    Expression,
    Group,
    RealSet,
    as_set,
    combined,
    complete,
    expressions,
    inequality,
    value_of,
)

DIGITS = 12  # of a decimal that double precision is compared with
MAX_CASES = 2  # plus-minus signs in one value
NO_NAMES = STOP - set(TABLES["stop"]["bounds_and_comparisons"].split())
NAMING = (ATOMS - {r"\pi"}) | ACCENTS | {r"\angle", r"\triangle", r"\measuredangle"}
NAME = re.compile("|".join(TABLES["names"].values()))
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx"}
STRUCTURE = {*",;:)]", r"\}", r"\in", r"\pm", r"\mp", r"\varnothing", r"\mathbb"} | RELATIONS | SIGNS.keys() | JOINERS
SIGNED = {r"\pm", r"\mp"}
CALCULATIONS = {r"\lfloor", r"\rfloor", r"\lceil", r"\rceil", r"\bmod", r"\mod", r"\cdots", r"\ldots", r"\dots"}
UNEVALUATED = {r"\sum", r"\prod", r"\int", r"\lim"}
KNOWN = STARTS | RELATIONS | OPENING | CLOSING | OVER.keys() | {r"\cdot", r"\pm", r"\mp", r"\cup", r"\in", r"\degree"}
Cut = list[Token]


def split(cut: Cut, at: set[str]) -> tuple[list[Cut], list[str]]:
    """The parts between the separators that stand outside all brackets, and the separators."""
    parts: list[Cut] = [[]]
    found, depth = [], 0
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


def read_list(cut: Cut) -> Answer:
    """Values between commas, semicolons, `and` and `or`; a single one is itself."""
    if cut and cut[0].text not in OPENING and not any(token.text in STRUCTURE for token in cut):
        return read_expression(cut)  # the short way
    parts, joins = split(cut, {",", ";", *JOINERS})
    if not joins:
        return read_relation(cut)
    parts = [part for part, after in zip(parts, [*joins, ","], strict=True) if part or after not in JOINERS]  # ", and"
    values = list(map(read_relation, parts))
    equations = [value for value in values if isinstance(value, Equation)]
    names = {equation.name for equation in equations}
    if len(names) == len(values) > 1 and None not in names:
        return named(equations)
    kind = "cases" if "or" in joins else "list"
    if any(isinstance(value, RealSet) for value in values):
        return read_conditions(kind, values, parts, set(joins))
    return group(kind, map(value_of, values))


def named(equations: list[Equation]) -> Group:
    """Values by their names; x, y and z in this order, others as they come."""
    usual = {equation.name for equation in equations} <= {"x", "y", "z"}
    return Group("named", tuple(sorted(equations, key=lambda one: one.name) if usual else equations))


def read_conditions(kind: str, values: list, parts: list[Cut], joins: set[str]) -> Answer:
    """Inequalities of one variable: their union for `or`, else their intersection. A comma means `or` where both cannot
    hold. For several variables, one condition per variable."""
    letters = [{token.text for token in part if token.kind == "symbol"} - {"e"} for part in parts]
    if len(set().union(*letters)) > 1:
        by_name = {"".join(sorted(one)): value for one, value in zip(letters, values, strict=True)}
        if "or" in joins or len(by_name) < len(values):
            raise Unreadable
        return Group(f"conditions {' '.join(sorted(by_name))}", tuple(by_name[name] for name in sorted(by_name)))
    sets = complete(map(as_set, values))
    if not sets or any(isinstance(value, Expression) for value in values) or ("or" in joins and len(joins) > 1):
        return group(kind, map(value_of, values))
    try:
        return combined(r"\cup" if "or" in joins else r"\cap", sets)
    except Unreadable:
        if "and" in joins:
            raise Meaningless from None
        return combined(r"\cup", sets)


def group(kind: str, values: Iterable[Answer]) -> Group:
    """Build a group and flatten nested lists."""
    flat = ("list", "cases")
    items = [one.items if isinstance(one, Group) and one.kind in flat else (one,) for one in values]
    return Group(kind, tuple(chain.from_iterable(items)))


def read_relation(cut: Cut) -> Answer:
    member, _ = split(cut, {r"\in"})
    if len(member) == 2 and is_name(member[0]):
        return read_relation(member[1])
    parts, relations = split(cut, RELATIONS)
    if not relations:
        return read_set(cut)
    if r"\approx" in relations:
        return read_approximation(split(cut, {r"\approx"})[0])
    return read_equation(parts) if set(relations) == {"="} else inequality(list(map(read_set, parts)), relations)


def read_approximation(parts: list[Cut]) -> Answer:
    """The exact side of a chain of approximations, if the decimals are roundings of it; the value of a name."""
    values = [read_relation(part) for part in (parts[1:] if is_name(parts[0]) else parts)]
    numbers = list(map(value_of, values))
    if not expressions(numbers):
        raise Unreadable
    exact = next((place for place, value in enumerate(numbers) if value.decimals is None), 0)
    if not all(agrees(numbers[exact], value) for value in [*numbers[:exact], *numbers[exact + 1 :]]):
        raise Meaningless
    return values[exact]


def agrees(exact: Expression, rounded: Expression) -> bool:
    """Whether a decimal is the exact value rounded or cut off behind its last place."""
    value, near = exact.value.near(), rounded.value.near()
    if rounded.decimals is None or not isinstance(value, float) or not isinstance(near, float):
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
    blanks = (" " if one[:1] == "\\" and one[1:] and two[0].isalpha() else "" for one, two in pairwise(["", *texts]))
    if NAME.fullmatch("".join(map(str.__add__, blanks, texts))):
        return True
    outside = re.sub(r"_ ?(?:\{[^{}]*\}|\S+)", "", " ".join(written(cut)))  # but for subscripts
    if any(token.kind == "macro" and token.text not in NAMING and token.text in outside for token in cut):
        return False
    letters = [word for word in outside.split() if word in ATOMS or (len(word) == 1 and word.islower())]
    if len(letters) > (0 if "|" in outside else 1):  # AB is a segment, ab a product
        return False
    return bool(cut) and not re.search(r"[-+/^!?=<>,;%()\d]", outside)


def read_equation(parts: list[Cut]) -> Answer:
    if not parts[0]:  # = 5
        return read_equation(parts[1:]) if len(parts) > 2 else read_set(parts[1])
    if len(parts) == 2 and is_name(parts[1]) and not is_name(parts[0]):  # 5 = x
        parts = parts[::-1]
    right = read_set(parts[-1])
    sides: list[Answer | None] = []
    name = "".join(written(parts[0])) if is_name(parts[0]) else None
    for place, part in enumerate(parts[:-1]):
        if written(part) == written(parts[-1]):
            raise Meaningless
        try:
            side = read_set(part)
        except Unreadable:
            sides.append(None)
            continue
        sides.append(side)
        if isinstance(side, Expression) and isinstance(right, Expression):
            false = apart(side.value.near(), right.value.near()) and not (name and place == 0)
        else:
            false = type(side) is not type(right) and place > 0
        if false:
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
    symbols = {token.text for token in cut if token.kind == "symbol"} - {"e", "i"}
    unknown = symbols or texts - UNITS.keys() - {"mod"} or macros - KNOWN - CALCULATIONS
    return not unknown and any(token.kind == "number" or token.text in (r"\pi", "e") for token in cut)


def read_set(cut: Cut) -> Answer:
    r"""Sets between \cup, \cap and \setminus."""
    parts, signs = split(cut, set(SIGNS))
    values = list(map(read_item, parts))
    if not signs:
        return values[0]
    if sets := complete(map(as_set, values)):
        found = sets[0]
        for sign, one in zip(signs, sets[1:], strict=True):
            found = combined(sign, [found, one])
        return found if any(found.cells[::2]) else Group("set", tuple(map(Expression, found.ends)))  # points
    if set(signs) != {r"\cup"}:
        raise Unreadable
    return group("union", values)


def read_item(cut: Cut) -> Answer:
    if (text := "".join(written(cut))) in SETS:
        return SETS[text]
    signs = [token.text for token in cut if token.text in SIGNED]
    if len(signs) > (1 if r"\mp" in signs else MAX_CASES):  # \mp would tie the others
        raise TooBig
    if signs and not (wrapped(cut) and cut[0].text == r"\{"):
        choices = map(iter, product("+-", repeat=len(signs)))
        cases = [
            [token._replace(text=next(left)) if token.text in SIGNED else token for token in cut] for left in choices
        ]
        return group("cases", map(read_item, cases))
    if wrapped(cut):
        opening, inner, closing = cut[0].text, cut[1:-1], cut[-1].text
        if opening == "{":
            return read_list(inner)
        such, bar = split(inner, {"|", ":"}) if opening == r"\{" else ([], [])
        if len(bar) == 1:
            return read_builder(*such)
        parts, commas = split(inner, {",", ";", *JOINERS} if opening == r"\{" else {",", ";"})
        if opening == r"\{":
            return group("set", (value_of(read_relation(part)) for part in parts))
        if commas:
            kind = "()" if opening == r"\langle" else opening + closing
            return Group(kind, tuple(value_of(read_relation(part)) for part in parts))
    parts, colons = split(cut, {":"})
    return Group(":", tuple(map(read_expression, parts))) if colons else read_expression(cut)


def read_builder(variable: Cut, condition: Cut) -> Answer:
    r"""\{x : x > 2\} and \{x \in \mathbb{R} \mid x > 2\}."""
    found = read_list(condition)
    if any(token.text == "(" for token in variable):
        raise Unreadable("pairs of numbers, or values of a function")
    if is_name(variable):
        return found
    name, *base = split(variable, {r"\in"})[0]
    sets = complete(map(as_set, [found, *map(read_item, base)]))
    if not is_name(name) or not sets:
        raise Unreadable
    return combined(r"\cap", sets)
