r"""What an answer is read into. Creating a value without content raises Unreadable.

A set of real numbers is one value however it is written: `x < 2 or x > 3`, `(-\infty,2) \cup (3,\infty)`,
`\mathbb{R} \setminus [2,3]`. Its ends are exact; double precision only orders them, and refuses where it cannot.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import inf
from operator import and_, gt, or_
from typing import Any, TypeGuard

from grpo_math.grading.algebra import Meaningless, Ratio, Unreadable, apart, atom, equal

BRACKETS = ("()", "[]", "(]", "[)")
TURNED = {">": "<", r"\ge": r"\le", "=": "="}
SIGNS = {r"\cup": or_, r"\cap": and_, r"\setminus": gt}  # of whether a number is in one set, and in the other


def refuse_empty(content: object) -> None:
    if not content:
        raise Unreadable("a value without content")


@dataclass(frozen=True, repr=False)
class Expression:
    """A number or formula with its units.

    `units` maps units to their powers (`%` and currencies are units); `words` is whether other words follow.
    `other_reading` is the expression in which the letters behind the number are units. `decimals` counts the places of
    a number written in digits alone; `sum` is whether it is written as a sum.
    """

    value: Ratio
    units: dict[str, int] = field(default_factory=dict)
    words: bool = False
    other_reading: "Expression | None" = None
    decimals: int | None = None
    sum: bool = False

    @property
    def unevaluated(self) -> bool:
        """Whether it is a rational number written as a sum."""
        return self.sum and self.value.fraction() is not None

    def __repr__(self) -> str:
        units = (unit if power == 1 else f"{unit}^{power}" for unit, power in self.units.items())
        return " ".join([str(self.value), *units])


@dataclass(frozen=True)
class Group:
    r"""Several values, compared according to their `kind`.

    Without an order: a `list`, a `set`, the `cases` of a plus-minus sign or of `or`, a `union`. With an order: a
    point or interval by its brackets, `()`, `[]`, `(]`, `[)`; a `2x3` matrix, row by row; a proportion `:`; a
    `chain < \le` of relations; `conditions` on several variables, by their names. `named` equations, by their
    names. `<`, `\le` or `\ne`: one formula, and 0 in that relation to it. `base 5`: digits. `clock`: hour, minute,
    second, and a (am), p (pm) or ""."""

    kind: str
    items: tuple[Any, ...]

    def __post_init__(self):
        refuse_empty(self.items)

    def __repr__(self) -> str:
        return f"{self.kind} {', '.join(map(repr, self.items))}"


@dataclass(frozen=True)
class Equation:
    """left = ... = right. `name` is the left side if it only names the value: x, f(x), P(A), some words. `known`: the
    left side holds no variable, as in f(2) + f(3) = 5. A side that cannot be read is None, never the last."""

    name: str | None
    known: bool
    sides: tuple[Any, ...]

    @property
    def right(self) -> Any:
        return self.sides[-1]


@dataclass(frozen=True)
class Text:
    """Words, in lower case and without punctuation."""

    words: str

    def __post_init__(self):
        refuse_empty(self.words)


@dataclass(frozen=True)
class RealSet:
    """The real line cut at `ends`, in ascending order. `cells`: whether each piece belongs to the set: below the first
    end, the first end itself, between the first two ends, the second end, and so on."""

    ends: tuple[Ratio, ...]
    cells: tuple[bool, ...]

    def __post_init__(self):
        refuse_empty(any(self.cells))

    def __repr__(self) -> str:
        ends = ["-infinity", *map(str, self.ends), "infinity"]
        low = [f"[{ends[run[0] // 2 + 1]}" if run[0] % 2 else f"({ends[run[0] // 2]}" for run in self.runs()]
        high = [f"{ends[run[-1] // 2 + 1]}{')]'[run[-1] % 2]}" for run in self.runs()]
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


Answer = Expression | Group | Equation | Text | RealSet
REALS = RealSet((), (True,))
SETS: dict[str, Answer] = {r"\mathbb{R}": REALS, r"\varnothing": Text("empty set")}


def value_of(value: Answer) -> Answer:
    """The value that an equation gives: 3 for x = 3."""
    return value.right if isinstance(value, Equation) and value.name else value


def expressions(values: Sequence[Answer]) -> TypeGuard[Sequence[Expression]]:
    return all(isinstance(value, Expression) for value in values)


def below(one: Ratio, other: Ratio) -> bool:
    """Whether one < other. Raises Unreadable where double precision cannot tell."""
    if equal(one, other):
        return False
    left, right = one.near(), other.near()
    if not isinstance(left, float) or not isinstance(right, float) or not apart(left, right):
        raise Unreadable("ends without a certain order")
    return left < right


def complete(sets: Iterable[RealSet | None]) -> list[RealSet] | None:
    """The sets, None if one of them is none."""
    found = list(sets)
    known = [one for one in found if one]
    return known if len(known) == len(found) else None


def combined(sign: str, sets: Iterable[RealSet]) -> RealSet:
    """The union, intersection or difference of sets. Raises Unreadable if it is empty."""
    one, *others = sets
    for other in others:
        ends = list(one.ends)
        for end in other.ends:
            if not any(equal(end, own) for own in one.ends):
                ends.insert(sum(below(own, end) for own in ends), end)
        cells = list(map(SIGNS[sign], one.on(ends), other.on(ends)))
        for place in reversed(range(len(ends))):
            if cells[2 * place] == cells[2 * place + 1] == cells[2 * place + 2]:  # nothing changes at this end
                del ends[place], cells[2 * place : 2 * place + 2]
        one = RealSet(tuple(ends), tuple(cells))
    return one


def infinite(value: Ratio) -> bool:
    return value.near() in (inf, -inf)


def half_line(end: Ratio, relation: str, upwards: bool) -> RealSet:
    r"""x > end or, where not `upwards`, x < end; with its end if the relation is \le; all but the end if it is \ne."""
    return RealSet((end,), (True, False, True) if relation == r"\ne" else (not upwards, relation == r"\le", upwards))


def inequality(values: Sequence[Answer], relations: list[str]) -> RealSet | Group:
    """What fulfils a chain of inequalities: the numbers between the bounds of one variable, else the chain itself."""
    if {">", r"\ge"} & set(relations):
        values, relations = values[::-1], [TURNED.get(relation, "") for relation in relations[::-1]]
    if "" in relations or not expressions(values):
        raise Unreadable
    if values[0].value.near() == inf or values[-1].value.near() == -inf:
        raise Meaningless
    chain = Group(f"chain {' '.join(relations)}", tuple(values))
    if not any(value.value.variables() for value in values):
        return chain
    steps = [
        (left, relation, right)
        for (left, right), relation in zip(pairwise(values), relations, strict=True)
        if not (infinite(left.value) or infinite(right.value))
    ]
    if (sets := complete(solved(*step) for step in steps)) is not None:
        return combined(r"\cap", sets or [REALS])
    if len(steps) > 1:
        return chain
    left, relation, right = steps[0]
    return Group(relation, (Expression(right.value - left.value),))


def solved(left: Expression, relation: str, right: Expression) -> RealSet | None:
    """The x of x < 5, 5 < x or -x < 5; None if neither side is a variable and the other its bound."""
    for side, bound, upwards in ((left, right, False), (right, left, True)):
        if isinstance(bound.value.near(), float | int) and not bound.unevaluated and relation != "=":
            for name, end, flipped in ((side.value, bound.value, False), (-side.value, -bound.value, True)):
                letter = str(name)
                if "(" not in letter and name == atom(letter) and name.near() is None:
                    return half_line(end, relation, upwards != flipped)
    return None


def interval(kind: str, low: Ratio, high: Ratio) -> RealSet:
    if low.near() == inf or high.near() == -inf:
        raise Unreadable("an interval without numbers")
    lines = [
        half_line(end, r"\le" if bracket in "[]" else "<", upwards)
        for end, bracket, upwards in ((low, kind[0], True), (high, kind[1], False))
        if not infinite(end)
    ]
    return combined(r"\cap", lines or [REALS])


def as_set(value: Answer) -> RealSet | None:
    """A value as a set of real numbers: intervals, their unions, numbers and equations that name one; else None."""
    match value:
        case RealSet():
            return value
        case Group(kind=kind, items=(Expression() as low, Expression() as high)) if kind in BRACKETS:
            unknown = None in (low.value.near(), high.value.near())
            return None if unknown or low.unevaluated or high.unevaluated else interval(kind, low.value, high.value)
        case Group(kind="set" | "list" | "cases" | "union" as kind, items=items):
            sets = complete(map(as_set, items))
            found = combined(r"\cup", sets) if sets else None
            if found and kind in ("list", "cases"):  # of intervals, each of which adds a part of its own
                numbers = any(isinstance(one, Expression) for one in items)
                return None if numbers or len(found.runs()) < len(items) else found
            return found
        case Equation(name=str()):
            return as_set(value.right)
        case Expression(value=number) if isinstance(number.near(), float) and not infinite(number):
            return None if value.unevaluated else RealSet((number,), (False, True, False))
    return None


def is_interval(value: Answer) -> bool:
    """Whether a pair, or one of a list, is shown to be no point by its brackets or an infinite end."""
    match value:
        case Group(kind="(]" | "[)"):
            return True
        case Group(kind="()" | "[]", items=items):
            return any(isinstance(end, Expression) and infinite(end.value) for end in items)
        case Group(items=items):
            return any(map(is_interval, items))
    return isinstance(value, RealSet)


def same_sets(gold: Answer, answer: Answer) -> bool:
    """A bracketed pair is an interval if the other side is one. In a list of pairs, one must be unambiguous."""
    if not all(is_interval(one) or (isinstance(one, Group) and one.kind in BRACKETS) for one in (gold, answer)):
        return False
    one, other = as_set(gold), as_set(answer)
    if one is None or other is None or one.cells != other.cells:
        return False
    return all(map(equal, one.ends, other.ends))
