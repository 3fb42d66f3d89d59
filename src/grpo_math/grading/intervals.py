r"""Sets of real numbers, so that all ways to write one are the same value: `x < 2 or x > 3`,
`(-\infty,2) \cup (3,\infty)`, `\mathbb{R} \setminus [2,3]`. Ends are exact; double precision only orders them, and
refuses where it cannot.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import inf
from operator import and_, gt, or_

from grpo_math.grading.algebra import Ratio, Unreadable, apart, equal
from grpo_math.grading.values import Equation, Expression, Group, refuse_empty

BRACKETS = ("()", "[]", "(]", "[)")
SIGNS = {r"\cup": or_, r"\cap": and_, r"\setminus": gt}  # of whether a number is in one set, and in the other


@dataclass(frozen=True)
class RealSet:
    """The real line cut at `ends`, in ascending order. `cells` tells of each piece whether it belongs to the set: below
    the first end, the first end itself, between the first two ends, the second end, and so on."""

    ends: tuple[Ratio, ...]
    cells: tuple[bool, ...]

    def __post_init__(self):
        refuse_empty(any(self.cells))

    def __repr__(self) -> str:
        ends = ["-infinity", *map(str, self.ends), "infinity"]
        runs = self.runs()
        low = [f"[{ends[run[0] // 2 + 1]}" if run[0] % 2 else f"({ends[run[0] // 2]}" for run in runs]
        high = [f"{ends[run[-1] // 2 + 1]}{')]'[run[-1] % 2]}" for run in runs]
        return " or ".join(map(", ".join, zip(low, high, strict=True)))

    def runs(self) -> list[list[int]]:
        """The places of neighbouring cells that belong to the set."""
        return [list(run) for inside, run in groupby(range(len(self.cells)), self.cells.__getitem__) if inside]

    def on(self, ends: list[Ratio]) -> list[bool]:
        """The cells on a line that is cut at more ends."""
        at, cells = 0, [self.cells[0]]
        for end in ends:
            own = at < len(self.ends) and not below(end, self.ends[at])
            cells += self.cells[2 * at + 1 : 2 * at + 3] if own else [self.cells[2 * at]] * 2
            at += own
        return cells


REALS = RealSet((), (True,))


def below(one: Ratio, other: Ratio) -> bool:
    """Whether one < other. Raises Unreadable where double precision cannot tell."""
    if equal(one, other):
        return False
    left, right = one.near(), other.near()
    if isinstance(left, complex) or isinstance(right, complex) or not apart(left, right):
        raise Unreadable("ends without a certain order")
    return left < right


def combined(sign: str, sets: Iterable[RealSet]) -> RealSet:
    """The union, intersection or difference of sets. Raises Unreadable if it is empty."""
    return reduce(lambda one, other: combine(sign, one, other), sets)


def combine(sign: str, one: RealSet, other: RealSet) -> RealSet:
    ends = list(one.ends)
    for end in other.ends:
        if not any(equal(end, own) for own in one.ends):
            ends.insert(sum(below(own, end) for own in ends), end)
    cells = list(map(SIGNS[sign], one.on(ends), other.on(ends)))
    for place in reversed(range(len(ends))):
        if cells[2 * place] == cells[2 * place + 1] == cells[2 * place + 2]:  # nothing changes at this end
            del ends[place], cells[2 * place : 2 * place + 2]
    return RealSet(tuple(ends), tuple(cells))


def half_line(end: Ratio, relation: str, upwards: bool) -> RealSet:
    r"""x > end or, where not `upwards`, x < end; with its end if the relation is \le; all but the end if it is \ne."""
    return RealSet((end,), (True, False, True) if relation == r"\ne" else (not upwards, relation == r"\le", upwards))


def interval(kind: str, low: Ratio, high: Ratio) -> RealSet:
    if low.near() == inf or high.near() == -inf:
        raise Unreadable("an interval without numbers")
    lines = [
        half_line(end, r"\le" if bracket in "[]" else "<", upwards)
        for end, bracket, upwards in ((low, kind[0], True), (high, kind[1], False))
        if not infinite(end)
    ]
    return combined(r"\cap", lines or [REALS])


def infinite(value: Ratio) -> bool:
    return value.near() in (inf, -inf)


def as_set(value: object) -> RealSet | None:
    """A value as a set of real numbers: intervals, their unions, numbers and equations that name one; else None."""
    match value:
        case RealSet():
            return value
        case Group(kind=kind, items=(Expression() as low, Expression() as high)) if kind in BRACKETS:
            unknown = None in (low.value.near(), high.value.near())
            return None if unknown or low.unevaluated or high.unevaluated else interval(kind, low.value, high.value)
        case Group(kind="set" | "list" | "cases" | "union" as kind, items=items):
            sets = list(map(as_set, items))
            found = combined(r"\cup", sets) if None not in sets else None
            if found and kind in ("list", "cases"):  # of intervals, each of which adds a part of its own
                numbers = any(isinstance(one, Expression) for one in items)
                return None if numbers or len(found.runs()) < len(items) else found
            return found
        case Equation(name=str()):
            return as_set(value.right)
        case Expression(value=number) if isinstance(number.near(), float) and not infinite(number):
            return None if value.unevaluated else RealSet((number,), (False, True, False))
    return None


def is_interval(value: object) -> bool:
    """Whether a pair, or one of a list, is shown to be no point by its brackets or an infinite end."""
    if isinstance(value, Group) and value.kind not in BRACKETS:
        return any(map(is_interval, value.items))
    if isinstance(value, Group):
        return value.kind in ("(]", "[)") or any(
            isinstance(end, Expression) and infinite(end.value) for end in value.items
        )
    return isinstance(value, RealSet)
