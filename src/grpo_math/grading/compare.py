"""Whether two values that were read are the same: exactly, element by element, or not to be settled here (None)."""

import math

from grpo_math.grading.algebra import Ratio, TooBig, atom, number, proportional
from grpo_math.grading.algebra import equal as same_ratio
from grpo_math.grading.intervals import RealSet, as_set, is_interval, same_set
from grpo_math.grading.values import (
    BaseNumber,
    Clock,
    EmptySet,
    Equation,
    Expression,
    Inequality,
    Matrix,
    Proportion,
    Several,
    Text,
    Tuple,
)

MIN_DECIMALS, MIN_DIGITS = 6, 4  # of a decimal that may stand for a fraction without a finite one
MAX_ITEMS = 50  # of an unordered list
BASIS = ("√-1", "j", "k")  # of vectors; i is read as the imaginary unit
TEMPERATURES = {"celsius", "fahrenheit"}  # both are degrees
UNSAID = {"the", "a", "an", "only", "and"}  # words that change no answer in words


def tier(gold: object, answer: object) -> str:
    """Which tier compares the two: that of the less simple one."""
    kinds = [kind(gold), kind(answer)]
    return next(name for name in ("text", "structure", "algebra", "number") if name in kinds)


def kind(value: object) -> str:
    match value:
        case Expression():
            return "number" if value.value.fraction() else "algebra"
        case Equation():
            return kind(value.right)
        case Inequality():
            return "algebra"
        case Text():
            return "text"
    return "structure"


def same(gold: object, answer: object) -> bool | None:
    """Whether two whole answers are the same, None when that cannot be settled exactly. A set of one element counts as
    that element here, and not within a list."""
    return same_item(alone(gold), alone(answer))


def alone(value: object) -> object:
    if isinstance(value, Several) and value.kind == "set" and len(value.items) == 1:
        return value if isinstance(value.items[0], Several | EmptySet) else value.items[0]
    return value


def same_item(gold: object, answer: object) -> bool | None:
    match gold, answer:
        case Equation(), Equation():
            return same_equation(gold, answer)
        case _, Equation():
            if answer.name or answer.known:
                return same(gold, answer.right)
            return all(side is not None and same(gold, side) is True for side in answer.sides)
        case Equation(), _:
            return same(gold.right, answer) if gold.name else False
        case Expression(), Expression():
            return same_expression(gold, answer)
        case EmptySet(), EmptySet():
            return True
        case (RealSet(), _) | (_, RealSet()):
            if not all(isinstance(one, Tuple) or is_interval(one) for one in (gold, answer)):
                return False
            sets = as_set(gold), as_set(answer)
            return same_set(*sets) if None not in sets else False
        case Inequality(), Inequality():
            return same_inequality(gold, answer)
        case Several(kind="named"), Several(kind="named"):
            wanted, given = ({equation.name: equation.right for equation in one.items} for one in (gold, answer))
            if wanted.keys() != given.keys():
                return False
            return conjunction(same_item(wanted[name], given[name]) for name in wanted)
        case (Several(kind="named"), Tuple(items=items)) | (Tuple(items=items), Several(kind="named")):
            return same_row(rights(gold) if isinstance(gold, Several) else rights(answer), items)
        case Several(kind="named"), Several():
            return same_row(rights(gold), answer.items)
        case Several(), Several(kind="named"):
            return same_items(rights(gold), rights(answer))
        case Several(), Several():
            kinds = {gold.kind, answer.kind}
            return (
                same_items(gold.items, answer.items) if kinds <= {"list", "set", "cases"} or len(kinds) == 1 else False
            )
        case (Several(kind="list"), Tuple()) | (Tuple(), Several(kind="list")):
            point = gold if isinstance(gold, Tuple) else answer
            return same_row(gold.items, answer.items) if point.opening + point.closing == "()" else False
        case Tuple(), Tuple():
            brackets = (gold.opening, gold.closing) == (answer.opening, answer.closing)
            return same_row(gold.items, answer.items) if brackets else False
        case Matrix(), Matrix():
            shapes = [[len(row) for row in matrix.rows] for matrix in (gold, answer)]
            return same_row(sum(gold.rows, ()), sum(answer.rows, ())) if shapes[0] == shapes[1] else False
        case (Matrix(), Tuple(items=items)) | (Tuple(items=items), Matrix()):
            rows = gold.rows if isinstance(gold, Matrix) else answer.rows
            return same_row(sum(rows, ()), items) if 1 in (len(rows), len(rows[0])) else False
        case (Tuple(items=items), Expression(value=sum_)) | (Expression(value=sum_), Tuple(items=items)):
            return same_row(items, components(sum_, len(items)) or (EmptySet(),))
        case (Several(kind="list" | "cases"), _) | (_, Several(kind="list" | "cases")):
            several, single = (gold, answer) if isinstance(gold, Several) else (answer, gold)
            return conjunction(same_item(single, item) for item in several.items)
        case Clock(), Clock():
            return same_clock(gold, answer)
        case (Clock(second=0, half=None), Proportion()) | (Proportion(), Clock(second=0, half=None)):
            clock, other = (gold, answer) if isinstance(gold, Clock) else (answer, gold)
            return same_row((Expression(number(clock.hour)), Expression(number(clock.minute))), other.items)
        case (Proportion(), _) | (_, Proportion()):
            return same_proportion(gold, answer)
        case (BaseNumber(), _) | (_, BaseNumber()):
            return same_digits(gold, answer)
        case Text(), Text():
            return said(gold) == said(answer)
    return False


def components(value: Ratio, size: int) -> tuple[Expression, ...] | None:
    """Of a i + b j + c k the a, b and c."""
    if not any(("j", 1) in monomial for monomial in value.numerator):
        return None
    parts = []
    for name in BASIS[:size]:
        part = value
        for other in BASIS:
            part = part.replaced(other, number(int(other == name)))
        parts.append(part)
    whole = number(0)
    for name, part in zip(BASIS, parts, strict=False):
        whole = whole + part * atom(name)
    return tuple(map(Expression, parts)) if size > 1 and same_ratio(whole, value) is True else None


def rights(several: Several) -> tuple:
    return tuple(item.right if isinstance(item, Equation) and item.name else item for item in several.items)


def conjunction(verdicts) -> bool | None:
    """False if one is False or there are none, else None if one is None, else True."""
    verdicts = list(verdicts)
    return False if not verdicts or False in verdicts else None if None in verdicts else True


def same_row(gold: tuple, answer: tuple) -> bool | None:
    if len(gold) != len(answer):
        return False
    return conjunction(map(same_item, gold, answer))


def same_items(gold: tuple, answer: tuple) -> bool | None:
    """Whether every value of one list has its own equal in the other."""
    if len(gold) != len(answer):
        return False
    if len(gold) > MAX_ITEMS:
        raise TooBig
    left, open_ = list(answer), False
    for item in gold:
        verdicts = [same_item(item, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            open_ = True
        else:
            return False
    return None if open_ else True


def same_expression(gold: Expression, answer: Expression) -> bool | None:
    """With letters behind a number as symbols, or as units; as units of a gold only where the answer names units too."""
    readings = [one for one in (answer, answer.other_reading) if one]
    pairs = [(gold, one) for one in readings]
    if gold.other_reading:
        pairs += [(gold.other_reading, one) for one in readings if one.units]
    verdicts = [same_reading(*pair) for pair in pairs]
    return True if True in verdicts else None if None in verdicts else False


def same_reading(gold: Expression, answer: Expression) -> bool | None:
    ratio = gold.value.fraction()
    if not same_units(gold, answer) or (ratio and answer.sum and not gold.sum):  # a sum that nobody has added up
        return False
    wanted, given = [gold.value], [answer.value]
    if "%" in gold.units and "%" not in answer.units:
        wanted.append(gold.value / number(100))
    if "%" in answer.units and "%" not in gold.units:
        small = ratio and abs(ratio[0]) < abs(ratio[1])
        given = [answer.value / number(100)] + ([] if small else given)
    verdicts = [same_ratio(one, two) for one in wanted for two in given]
    if True in verdicts or rounded(gold.value, answer):
        return True
    rough = (answer.decimals or 0) >= MIN_DIGITS  # a decimal that math_verify might take for the sine it rounds
    return None if None in verdicts and not rough else False


def same_units(gold: Expression, answer: Expression) -> bool:
    """The answer may leave the unit out, or add one where the gold has none; percent is no unit of things."""
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
    ratio, given = gold.fraction(), answer.value.fraction()
    if "%" in answer.units or not (
        ratio and given and (answer.decimals or 0) >= MIN_DECIMALS and abs(given[0]) >= 10**MIN_DIGITS
    ):
        return False
    shared = math.gcd(*ratio)
    top, bottom = ratio[0] // shared, ratio[1] // shared
    if 10 ** bottom.bit_length() % bottom == 0:  # the gold is a decimal itself
        return False
    return abs(top * given[1] - given[0] * bottom) * 2 <= abs(bottom)


def same_equation(gold: Equation, answer: Equation) -> bool | None:
    if gold.name and answer.name and (same(gold.sides[0], answer.sides[0]) or not (symbol(gold) and symbol(answer))):
        return same(gold.right, answer.right)
    if not all(isinstance(side, Expression) for side in (*gold.sides, *answer.sides)):
        return None
    wanted, given = (one.sides[0].value - one.right.value for one in (gold, answer))
    return bool(proportional(wanted, given)) or (None if wanted.opaque or given.opaque else False)


def symbol(equation: Equation) -> bool:
    """Whether the left side is a variable and no longer name, such as f(x) or some words."""
    return equation.name is not None and "(" not in equation.name and len(equation.name) < 4


def same_inequality(gold: Inequality, answer: Inequality) -> bool | None:
    if gold.relation != answer.relation:
        return False
    sign = proportional(gold.value, answer.value)
    if sign > 0 or (sign and gold.relation == r"\ne"):
        return True
    return None if gold.value.opaque or answer.value.opaque else False


def same_clock(gold: Clock, answer: Clock) -> bool:
    """15:30 is 3:30 p.m.; a missing am or pm is not held against the answer."""
    if (gold.minute, gold.second) != (answer.minute, answer.second):
        return False
    hours = [
        one.hour % 12 + 12 * (one.half == "p") if one.half and one.hour < 13 else one.hour for one in (gold, answer)
    ]
    sure = all(one.half or one.hour > 12 for one in (gold, answer))
    return hours[0] == hours[1] if sure else gold.hour == answer.hour


def same_proportion(gold: object, answer: object) -> bool | None:
    """3:2 is 6:4 and 3/2; a whole number is no proportion."""
    if isinstance(gold, Expression) and (ratio := gold.value.fraction()) and ratio[0] % ratio[1] == 0:
        return False
    rows = [ratio_items(one) for one in (gold, answer)]
    if len(rows[0]) != len(rows[1]) or not rows[0]:
        return False
    (first, *others), (second, *more) = rows
    return conjunction(same_ratio(one * second, two * first) for one, two in zip(others, more, strict=True))


def ratio_items(value: object) -> list[Ratio]:
    """The numbers of a proportion; a plain number n is n:1, and nothing else is one."""
    match value:
        case Expression():
            return [value.value, number(1)]
        case Proportion() if all(isinstance(item, Expression) for item in value.items):
            return [item.value for item in value.items]
    return []


def same_digits(gold: object, answer: object) -> bool:
    """204_5 is 204_5 and 204; another base is another answer, since the question asked for one."""
    digits = []
    for one in (gold, answer):
        if isinstance(one, BaseNumber):
            digits.append(one.digits)
        elif isinstance(one, Expression) and (ratio := one.value.fraction()) and ratio[1] == 1 and ratio[0] >= 0:
            digits.append(str(ratio[0]))
        else:
            return False
    bases = {one.base for one in (gold, answer) if isinstance(one, BaseNumber)}
    plain = isinstance(gold, Expression) and bases != {10}  # a decimal number is in no other base
    return digits[0] == digits[1] and len(bases) == 1 and not plain


def said(text: Text) -> list[str]:
    words = text.words.split()
    return [word for word in words if word not in UNSAID] or words
