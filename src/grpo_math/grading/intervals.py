r"""Sets of real numbers, so that every way to write one is the same value: `x < 2 or x > 3`, `(-\infty,2) \cup (3,\infty)`
and `\mathbb{R} \setminus [2,3]`. Ends are exact; double precision only orders them, and refuses where it cannot."""

from collections.abc import Callable
from dataclasses import dataclass

from grpo_math.grading.algebra import Ratio, Unreadable, apart, atom, equal
from grpo_math.grading.values import Equation, Expression, Several, Tuple, refuse_empty

INFINITY = atom(r"\infty")


@dataclass(frozen=True)
class RealSet:
    """The real line cut at `ends`, in ascending order. `cells` tells of each piece whether it belongs to the set: below
    the first end, the first end itself, between the first two ends, the second end, and so on."""

    ends: tuple[Ratio, ...]
    cells: tuple[bool, ...]

    def __post_init__(self):
        refuse_empty(any(self.cells))

    def __repr__(self) -> str:
        marks = [
            "".join(".x"[cell] for cell in self.cells[place : place + 2]) for place in range(0, len(self.cells), 2)
        ]
        return "real line: " + " ".join(f"{mark}{end}" for mark, end in zip(marks, [*self.ends, ""], strict=True))


REALS = RealSet((), (True,))


def below(one: Ratio, other: Ratio) -> bool:
    """Whether one < other. Raises Unreadable where double precision cannot tell."""
    if equal(one, other):
        return False
    left, right = one.near(), other.near()
    if isinstance(left, complex) or isinstance(right, complex) or not apart(left, right):
        raise Unreadable("ends without a certain order")
    return left < right


def combined(keep: Callable[[bool, bool], bool], one: RealSet, other: RealSet) -> RealSet:
    """The set of the numbers for which `keep(in one, in other)` holds. Raises Unreadable if it is empty."""
    ends, left, right = [], list(one.ends), list(other.ends)
    while left or right:
        if not left or not right:
            ends.append((left or right).pop(0))
        elif below(left[0], right[0]):
            ends.append(left.pop(0))
        else:
            if not below(right[0], left[0]):
                left.pop(0)
            ends.append(right.pop(0))
    cells = list(map(keep, spread(one, ends), spread(other, ends)))
    for place in range(len(ends) - 1, -1, -1):
        if cells[2 * place] == cells[2 * place + 1] == cells[2 * place + 2]:  # nothing changes at this end
            del ends[place], cells[2 * place : 2 * place + 2]
    return RealSet(tuple(ends), tuple(cells))


def spread(one: RealSet, ends: list[Ratio]) -> list[bool]:
    """The cells of a set on a line that is cut at more ends."""
    at, cells = 0, [one.cells[0]]
    for end in ends:
        own = at < len(one.ends) and not below(end, one.ends[at])
        cells += one.cells[2 * at + 1 : 2 * at + 3] if own else [one.cells[2 * at]] * 2
        at += own
    return cells


def same_set(gold: RealSet, answer: RealSet) -> bool:
    return gold.cells == answer.cells and all(map(equal, gold.ends, answer.ends))


def half_line(end: Ratio, relation: str, upwards: bool) -> RealSet:
    r"""x > end or, where not `upwards`, x < end; with its end if the relation is \le; all but the end if it is \ne."""
    if relation == r"\ne":
        return RealSet((end,), (True, False, True))
    return RealSet((end,), (not upwards, relation == r"\le", upwards))


def interval(value: Tuple) -> RealSet | None:
    """A pair between brackets as an interval; None if it is none."""
    if value.opening not in ("(", "[") or value.closing not in (")", "]") or len(value.items) != 2:
        return None
    if not all(isinstance(item, Expression) and item.value.near() is not None for item in value.items):
        return None
    low, high = (item.value for item in value.items)
    found = REALS
    if low.near() != float("-inf"):
        found = half_line(low, r"\le" if value.opening == "[" else "<", True)
    if high.near() != float("inf"):
        found = combined(lambda a, b: a and b, found, half_line(high, r"\le" if value.closing == "]" else "<", False))
    return found


def as_set(value: object) -> RealSet | None:
    """A value as a set of real numbers: intervals, their unions, numbers and equations that name one; else None."""
    match value:
        case RealSet():
            return value
        case Tuple():
            return interval(value)
        case Several(kind="set" | "list" | "union"):
            sets = [as_set(item) for item in value.items]
            if None in sets:
                return None
            found = sets[0]
            for one in sets[1:]:
                found = combined(lambda a, b: a or b, found, one)
            return found
        case Equation(name=str(), right=Expression() as right):
            return as_set(right)
        case Expression():
            near = value.value.near()
            real = not (near is None or isinstance(near, complex) or near in (float("inf"), float("-inf")))
            return RealSet((value.value,), (False, True, False)) if real else None
    return None


def is_interval(value: object) -> bool:
    """Whether brackets or infinite ends show that a pair, or a list of pairs, is no point."""
    if isinstance(value, Several):
        return any(map(is_interval, value.items))
    if not isinstance(value, Tuple) or len(value.items) != 2:
        return isinstance(value, RealSet)
    infinite = any(
        isinstance(item, Expression) and item.value.near() in (float("inf"), float("-inf")) for item in value.items
    )
    return infinite or value.opening + value.closing in ("(]", "[)")
