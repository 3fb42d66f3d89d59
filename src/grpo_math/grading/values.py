"""What an answer can be, once it was read."""

from dataclasses import dataclass

from grpo_math.grading.algebra import Ratio


@dataclass(frozen=True, repr=False)
class Expression:
    """A number or formula. `bare` is its value if the letters behind the number are units; `decimals` is how many
    places a plain decimal was written with, and `sum` whether it is written as a sum."""

    value: Ratio
    percent: bool = False
    units: frozenset[str] = frozenset()
    bare: Ratio | None = None
    decimals: int | None = None
    sum: bool = False

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}{' '.join(['', *sorted(self.units)])}"

    __repr__ = __str__


@dataclass(frozen=True)
class Several:
    """Values in no order: a `list`, a `set`, the parts of a `union`, the cases of a plus-minus sign (a list); or
    `named` equations, x = 1, y = 2, in the order of their names."""

    items: tuple
    kind: str = "list"

    def __repr__(self) -> str:
        return ", ".join(map(repr, self.items))


@dataclass(frozen=True)
class Tuple:
    """Values in order between brackets: a point, a vector, or an interval; or between signs: a < b < c."""

    opening: str
    items: tuple
    closing: str

    def __repr__(self) -> str:
        return f"{self.opening}{', '.join(map(repr, self.items))}{self.closing}"


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple, ...]


@dataclass(frozen=True)
class Equation:
    """left = right. `name` is the left side if it only names the value: x, f(x), P(A), some words; `known` says that it
    holds no variable, as in f(2) + f(3) = 5. `left` is None if it cannot be read."""

    name: str | None
    known: bool
    left: object | None
    right: object


@dataclass(frozen=True)
class Inequality:
    r"""0 < value, 0 \le value or 0 \ne value."""

    value: Ratio
    relation: str


@dataclass(frozen=True)
class Proportion:
    """3:2, as expressions."""

    items: tuple


@dataclass(frozen=True)
class Clock:
    """A time of day, or a proportion that looks like one: 3:30. `half` is a for am and p for pm."""

    hour: int
    minute: int
    second: int | None
    half: str | None


@dataclass(frozen=True)
class BaseNumber:
    digits: str
    base: int


@dataclass(frozen=True)
class Nothing:
    """An equation that says nothing (x = x) or something false (6 = 5)."""


@dataclass(frozen=True)
class Text:
    """Words, in lower case and without punctuation."""

    words: str


def constant(value: object) -> bool:
    """Whether it is a formula without symbols."""
    return isinstance(value, Expression) and value.value.constant()
