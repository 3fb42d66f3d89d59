"""Whether two values that were read are the same: exactly, element by element, or not to be settled here (None)."""

import math

from grpo_math.grading.algebra import Ratio, TooBig, number, proportional
from grpo_math.grading.algebra import equal as same_ratio
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
)

MIN_DECIMALS, MIN_DIGITS = 6, 4  # of a decimal that may stand for a fraction without a finite one
MAX_ITEMS = 50  # of an unordered list


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
        case Inequality() | Nothing():
            return "algebra"
        case Text():
            return "text"
    return "structure"


def same(gold: object, answer: object) -> bool | None:
    """Whether two values that were read are the same; None when that cannot be settled exactly."""
    match gold, answer:
        case Equation(), Equation():
            return same_equation(gold, answer)
        case _, Equation():
            return same(gold, answer.right) if answer.name or answer.known else False
        case Equation(), _:
            return same(gold.right, answer) if gold.name else False
        case Expression(), Expression():
            return same_expression(gold, answer)
        case Inequality(), Inequality():
            return same_inequality(gold, answer)
        case Several(kind="named"), Several(kind="named"):
            wanted, given = ({equation.name: equation.right for equation in one.items} for one in (gold, answer))
            if wanted.keys() != given.keys():
                return False
            return conjunction(same(wanted[name], given[name]) for name in wanted)
        case (Several(kind="named"), Tuple(items=items)) | (Tuple(items=items), Several(kind="named")):
            return same_row(rights(gold) if isinstance(gold, Several) else rights(answer), items)
        case Several(kind="named"), Several():
            return same_row(rights(gold), answer.items)
        case Several(), Several(kind="named"):
            return same_items(rights(gold), rights(answer))
        case Several(), Several():
            kinds = {gold.kind, answer.kind}
            return same_items(gold.items, answer.items) if kinds <= {"list", "set"} or len(kinds) == 1 else False
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
        case (Several(kind="list"), _) | (_, Several(kind="list")):
            several, single = (gold, answer) if isinstance(gold, Several) else (answer, gold)
            return conjunction(same(single, item) for item in several.items)
        case Clock(), Clock():
            return same_clock(gold, answer)
        case (Clock(second=None, half=None), Proportion()) | (Proportion(), Clock(second=None, half=None)):
            clock, other = (gold, answer) if isinstance(gold, Clock) else (answer, gold)
            return same_row((Expression(number(clock.hour)), Expression(number(clock.minute))), other.items)
        case (Proportion(), _) | (_, Proportion()):
            return same_proportion(gold, answer)
        case (BaseNumber(), _) | (_, BaseNumber()):
            return same_digits(gold, answer)
        case Text(), Text():
            return without_articles(gold) == without_articles(answer)
    return False


def rights(several: Several) -> tuple:
    return tuple(item.right if isinstance(item, Equation) and item.name else item for item in several.items)


def conjunction(verdicts) -> bool | None:
    """False if one is False, else None if one is None, else True."""
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def same_row(gold: tuple, answer: tuple) -> bool | None:
    if len(gold) != len(answer):
        return False
    return conjunction(map(same, gold, answer))


def same_items(gold: tuple, answer: tuple) -> bool | None:
    """Whether every value of one list has its own equal in the other."""
    if len(gold) != len(answer):
        return False
    if len(gold) > MAX_ITEMS:
        raise TooBig
    left, open_ = list(answer), False
    for item in gold:
        verdicts = [same(item, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            open_ = True
        else:
            return False
    return None if open_ else True


def same_expression(gold: Expression, answer: Expression) -> bool | None:
    if not (gold.units <= answer.units or answer.units <= gold.units):  # no units at all are always fewer
        return False
    ratio = gold.value.fraction()
    if ratio and answer.sum and not gold.sum:  # nobody has added it up: it may be the question's own text
        return False
    wanted, given = [gold.value], [answer.value]
    if gold.percent and not answer.percent:
        wanted.append(gold.value / number(100))
    if answer.percent and not gold.percent:
        small = ratio and abs(ratio[0]) < abs(ratio[1])
        given = [answer.value / number(100)] + ([] if small else given)
    if answer.bare and ratio:
        given.append(answer.bare)
    verdicts = [same_ratio(one, two) for one in wanted for two in given]
    if True in verdicts or rounded(gold.value, answer):
        return True
    rough = (
        answer.decimals or 0
    ) >= MIN_DIGITS  # a rounded decimal, which math_verify might take for the sine it rounds
    return None if None in verdicts and not rough else False


def rounded(gold: Ratio, answer: Expression) -> bool:
    """Whether the answer is a decimal, long enough, that the gold rounds to; only for golds such as 1/3 that no
    decimal equals."""
    ratio, given = gold.fraction(), answer.value.fraction()
    if answer.percent or not (
        ratio and given and (answer.decimals or 0) >= MIN_DECIMALS and abs(given[0]) >= 10**MIN_DIGITS
    ):
        return False
    shared = math.gcd(*ratio)
    top, bottom = ratio[0] // shared, ratio[1] // shared
    if 10 ** bottom.bit_length() % bottom == 0:  # the gold is a decimal itself
        return False
    return abs(top * given[1] - given[0] * bottom) * 2 <= abs(bottom)


def same_equation(gold: Equation, answer: Equation) -> bool | None:
    if gold.name and answer.name and (same(gold.left, answer.left) or not (symbol(gold) and symbol(answer))):
        return same(gold.right, answer.right)
    sides = (gold.left, gold.right, answer.left, answer.right)
    if not all(isinstance(side, Expression) for side in sides):
        return None
    wanted, given = (one.left.value - one.right.value for one in (gold, answer))
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
    """A missing am or pm is not held against the answer."""
    halves = {gold.half, answer.half} - {None}
    return (gold.hour, gold.minute, gold.second) == (answer.hour, answer.minute, answer.second) and len(halves) < 2


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


def without_articles(text: Text) -> list[str]:
    return [word for word in text.words.split() if word not in ("the", "an")]
