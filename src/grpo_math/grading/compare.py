"""Whether two values that were read are the same: exactly, element by element, or not to be settled here (None)."""

import re
from collections.abc import Iterable
from fractions import Fraction

from grpo_math.grading.algebra import Poly, Ratio, TooBig, apart, number, proportional
from grpo_math.grading.algebra import equal as same_ratio
from grpo_math.grading.values import Answer, Equation, Expression, Group, RealSet, Text, same_sets, value_of

MIN_DECIMALS, MIN_DIGITS = 6, 4  # of a decimal that may stand for a fraction without a finite one
MAX_ITEMS = 50  # of an unordered list
INEQUALITY = {"<", r"\le", r"\ne"}
UNORDERED = {"list", "set", "cases"}
BASIS = ("√-1", "j", "k")  # of vectors; i is read as the imaginary unit
TEMPERATURES = {"celsius", "fahrenheit"}  # both are degrees
UNSAID = {"the", "a", "an", "and"}  # words that change no answer in words


def tier(gold: Answer, answer: Answer) -> str:
    """Which tier compares the two: that of the less simple one."""
    kinds = kind(gold), kind(answer)
    return next(name for name in ("text", "structure", "algebra", "number") if name in kinds)


def kind(value: Answer) -> str:
    value = value.right if isinstance(value, Equation) else value
    if isinstance(value, Expression):
        return "number" if value.value.fraction() else "algebra"
    return "text" if isinstance(value, Text) else "algebra" if getattr(value, "kind", "") in INEQUALITY else "structure"


def same(gold: Answer, answer: Answer) -> bool | None:
    """Whether two whole answers are the same, None when that cannot be settled exactly. A set of one element counts as
    that element here, and not within a list."""
    return same_item(alone(gold), alone(answer))


def alone(value: Answer) -> Answer:
    match value:
        case Group(kind="set", items=(one,)) if not isinstance(one, Text) and getattr(one, "kind", "") != "set":
            return one
    return value  # the set of the empty set is not empty


def same_item(gold: Answer, answer: Answer) -> bool | None:
    match gold, answer:
        case Equation(), Equation():
            return same_equation(gold, answer)
        case _, Equation(sides=sides):
            if answer.name or answer.known:
                return same(gold, answer.right)
            return all(side is not None and same(gold, side) is True for side in sides)
        case Equation(), _:
            return same(gold.right, answer) if gold.name else False
        case Expression(), Expression():
            return same_expression(gold, answer)
        case (RealSet(), _) | (_, RealSet()):
            return same_sets(gold, answer)
        case Group(kind="clock", items=(hour, minute, 0, "")), Expression() if minute > 9:  # or the proportion 1:20
            return same_proportion(Group(":", (Expression(number(hour)), Expression(number(minute)))), answer)
        case (Group(kind=":"), _) | (_, Group(kind=":")):
            return same_proportion(gold, answer)
        case Group(), Group():
            return same_group(gold, answer)
        case (Group() as row, Expression() as ijk) | (Expression() as ijk, Group() as row) if is_vector(row.kind):
            vector = components(ijk, len(row.items))
            return vector is not None and same_row(row.items, vector)
        case (Group(kind="list" | "cases", items=items), one) | (one, Group(kind="list" | "cases", items=items)):
            return conjunction(same_item(one, item) for item in items)
        case Text(), Text():
            return said(gold) == said(answer)
    return False


def same_group(gold: Group, answer: Group) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if kinds == {"named"}:
        wanted, given = ({equation.name: equation.right for equation in one.items} for one in (gold, answer))
        return wanted.keys() == given.keys() and conjunction(same_item(wanted[name], given[name]) for name in wanted)
    if "named" in kinds:
        rows = [tuple(map(value_of, one.items)) for one in (gold, answer)]
        return same_items(*rows) if gold.kind in UNORDERED else same_row(*rows)
    if kinds <= UNORDERED or kinds == {"union"}:
        return same_items(gold.items, answer.items)
    if kinds == {"clock"}:
        return same_clock(gold, answer)
    if len(kinds) == 1 and gold.kind in INEQUALITY:
        return proportional(gold.items[0].value, answer.items[0].value, signed=gold.kind != r"\ne")
    if gold.kind.startswith("base"):
        return gold == answer
    if kinds == {"list", "()"} and conjunction(same_item(gold.items[0], item) for item in gold.items):
        return False  # 0, 0 is one value repeated, not a point
    vectors = len(kinds & {"()", "[]"}) == 1 and all(map(is_vector, kinds))
    return bool(len(kinds) == 1 or kinds == {"list", "()"} or vectors) and same_row(gold.items, answer.items)


def conjunction(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is False or there are none, else None if one is None, else True."""
    verdicts = list(verdicts)
    return False if not verdicts or False in verdicts else None if None in verdicts else True


def disjunction(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return True if True in verdicts else None if None in verdicts else False


def same_row(gold: tuple, answer: tuple) -> bool | None:
    return len(gold) == len(answer) and conjunction(map(same_item, gold, answer))


def same_items(gold: tuple, answer: tuple) -> bool | None:
    """Whether every value of one list has its own equal in the other."""
    if len(gold) != len(answer):
        return False
    if len(gold) > MAX_ITEMS:
        raise TooBig
    left = list(answer)
    verdict: bool | None = True
    for item in gold:
        verdicts = [same_item(item, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            verdict = None
        else:
            return False
    return verdict


def is_vector(kind: str) -> bool:
    return kind in ("()", "[]") or kind.startswith("1x") or kind.endswith("x1")


def components(vector: Expression, size: int) -> tuple[Expression, ...] | None:
    """Of a i + b j + c k the a, b and c."""
    parts: list[Poly] = [{} for _ in range(size)]
    denominator = vector.value.denominator
    for monomial, factor in vector.value.numerator.items():
        places = [BASIS.index(name) for name, exponent in monomial if name in BASIS and exponent == 1]
        if len(places) != 1 or places[0] >= size or denominator.keys() != {()}:
            return None
        parts[places[0]][tuple(item for item in monomial if item[0] not in BASIS)] = factor
    return tuple(Expression(Ratio(part, denominator)) for part in parts) if any(parts[1:]) else None


def same_expression(gold: Expression, answer: Expression) -> bool | None:
    """Letters behind a number are symbols or units; those of a gold are units only where the answer names units too."""
    readings = [one for one in (answer, answer.other_reading) if one]
    pairs = [(gold, one) for one in readings]
    if gold.other_reading:
        pairs += [(gold.other_reading, one) for one in readings if one.units]
    return disjunction(same_reading(*pair) for pair in pairs)


def same_reading(gold: Expression, answer: Expression) -> bool | None:
    ratio = gold.value.fraction()
    if not same_units(gold, answer) or (ratio and answer.sum and not gold.sum):  # an unevaluated sum
        return False
    wanted, given = [gold.value], [answer.value]
    if "%" in gold.units and "%" not in answer.units:
        wanted.append(gold.value / number(100))
    if "%" in answer.units and "%" not in gold.units:
        small = ratio and abs(ratio[0]) < abs(ratio[1])
        given = [answer.value / number(100)] + ([] if small else given)
    verdict = disjunction(same_ratio(one, two) for one in wanted for two in given)
    if verdict or rounded(gold.value, answer):
        return True
    rough = (answer.decimals or 0) >= MIN_DIGITS  # a decimal that math_verify might take for the sine it rounds
    return False if rough else verdict


def same_units(gold: Expression, answer: Expression) -> bool:
    """The answer may omit the unit, or add one if the gold has none. Percent does not go with a noun."""
    if not gold.units:
        return not (gold.words and "%" in answer.units)
    if not answer.units:
        return not answer.words
    wanted, given = gold.units.keys() & TEMPERATURES, answer.units.keys() & TEMPERATURES
    rest = [{unit: power for unit, power in one.units.items() if unit not in TEMPERATURES} for one in (gold, answer)]
    return rest[0] == rest[1] and (wanted == given or not (wanted and given))


def rounded(gold: Ratio, answer: Expression) -> bool:
    """Whether the answer is a decimal, long enough, that the gold rounds to; only for golds such as 1/3 that no
    decimal equals."""
    places, ratio, decimal = answer.decimals or 0, gold.fraction(), answer.value.fraction()
    if places < MIN_DECIMALS or "%" in answer.units or not ratio or not decimal:
        return False
    exact, given = Fraction(*ratio), Fraction(*decimal)
    finite = 10 ** exact.denominator.bit_length() % exact.denominator == 0
    long = abs(given) * 10**places >= 10**MIN_DIGITS
    return long and not finite and abs(exact - given) * 2 * 10**places <= 1


def same_equation(gold: Equation, answer: Equation) -> bool | None:
    if gold.name and answer.name:
        variables = all("(" not in name and len(name) < 4 for name in (gold.name, answer.name))  # not f(x), no words
        if not variables or same(gold.sides[0], answer.sides[0]):
            return same(gold.right, answer.right)
    if len(answer.sides) > 2:
        return False
    if not all(isinstance(side, Expression) for side in (*gold.sides, *answer.sides)):
        return None
    if gold.name and not answer.name and not gold.right.value.variables():  # 2x = 6 was to be solved
        return False
    wanted, given = (one.sides[0].value - one.right.value for one in (gold, answer))
    return proportional(wanted, given, signed=False)


def same_clock(gold: Group, answer: Group) -> bool:
    """15:30 is 3:30 p.m.; a missing am or pm is accepted."""
    times = gold.items, answer.items
    if any(half == "a" and hour > 12 for hour, *_, half in times):
        return False
    sure = all(half or hour > 12 for hour, *_, half in times)
    one, other = ((hour % 12 + 12 * (half == "p") if sure and half else hour, *rest) for hour, *rest, half in times)
    return one == other


def same_proportion(gold: Answer, answer: Answer) -> bool | None:
    """3:2 is 6:4 and 3/2; a whole number is no proportion, and a number n the proportion n:1."""
    if isinstance(gold, Expression) and (ratio := gold.value.fraction()) and ratio[0] % ratio[1] == 0:
        return False
    whole = Expression(number(1))
    wanted, given = (
        one.items if isinstance(one, Group) and one.kind == ":" else (one, whole) for one in (gold, answer)
    )
    if len(wanted) != len(given) or not all(isinstance(item, Expression) for item in wanted + given):
        return False
    if any(item.sum for item in given) and not any(item.sum for item in wanted):
        return False
    values = [[item.value.near() for item in row] for row in (wanted, given)]
    if not all(any(value is None or apart(value, 0.0) for value in row) for row in values):  # 0:0
        return False
    first, second = wanted[0].value, given[0].value
    return conjunction(
        same_ratio(one.value * second, two.value * first) for one, two in zip(wanted[1:], given[1:], strict=True)
    )


def said(text: Text) -> list[str]:
    words = re.sub(r"^only (?!if\b)| only$", "", text.words).split()
    return [word for word in words if word not in UNSAID] or words
