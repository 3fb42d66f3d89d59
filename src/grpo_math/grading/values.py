"""What an answer can be, once it has been read. No value is without content: the constructors refuse to make one."""

from dataclasses import dataclass, field

from grpo_math.grading.algebra import Ratio, Unreadable


def refuse_empty(*parts) -> None:
    if not all(parts):
        raise Unreadable("a value without content")


@dataclass(frozen=True, repr=False)
class Expression:
    """A number or formula with its units.

    `units` maps units to their powers (`%` and currencies are units), `words` says that other words follow.
    `other_reading` is the expression in which the letters behind the number are units. `decimals` counts the places of a
    number written in digits alone, and `sum` says that it is written as a sum.
    """

    value: Ratio
    units: dict[str, int] = field(default_factory=dict)
    words: bool = False
    other_reading: "Expression | None" = None
    decimals: int | None = None
    sum: bool = False

    def __repr__(self) -> str:
        return " ".join(
            [str(self.value), *(f"{unit}^{power}" if power != 1 else unit for unit, power in self.units.items())]
        )


@dataclass(frozen=True)
class EmptySet:
    pass


@dataclass(frozen=True)
class Several:
    """Values in no order: a `list`, a `set`, the parts of a `union`, the `cases` of a plus-minus sign; or `named` equations, x = 1, y = 2, in the order of their names."""

    items: tuple
    kind: str = "list"

    def __post_init__(self):
        refuse_empty(self.items)

    def __repr__(self) -> str:
        return ", ".join(map(repr, self.items))


@dataclass(frozen=True)
class Tuple:
    """Values in order between brackets: a point, a vector, or an interval; or between signs: a < b < c."""

    opening: str
    items: tuple
    closing: str

    def __post_init__(self):
        refuse_empty(self.items)

    def __repr__(self) -> str:
        return f"{self.opening}{', '.join(map(repr, self.items))}{self.closing}"


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple, ...]

    def __post_init__(self):
        refuse_empty(self.rows, *self.rows)


@dataclass(frozen=True)
class Equation:
    """left = ... = right. `name` is the left side if it only names the value: x, f(x), P(A), some words; `known` says
    that the left side holds no variable, as in f(2) + f(3) = 5. A side that cannot be read is None, never the last."""

    name: str | None
    known: bool
    sides: tuple

    @property
    def right(self) -> object:
        return self.sides[-1]


@dataclass(frozen=True)
class Inequality:
    r"""0 < value, 0 \le value or 0 \ne value, in several variables or not linear."""

    value: Ratio
    relation: str


@dataclass(frozen=True)
class Proportion:
    """3:2, as expressions."""

    items: tuple

    def __post_init__(self):
        refuse_empty(self.items)


@dataclass(frozen=True)
class Clock:
    """A time of day, or a proportion that looks like one: 3:30. `half` is a for am and p for pm, and None if unsaid."""

    hour: int
    minute: int
    second: int
    half: str | None


@dataclass(frozen=True)
class BaseNumber:
    digits: str
    base: int

    def __post_init__(self):
        refuse_empty(self.digits)


@dataclass(frozen=True)
class Text:
    """Words, in lower case and without punctuation."""

    words: str

    def __post_init__(self):
        refuse_empty(self.words)
