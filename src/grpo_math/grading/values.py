"""Parsed answers. Creating a value without content raises Unreadable."""

from dataclasses import dataclass, field

from grpo_math.grading.algebra import Ratio, Unreadable


def refuse_empty(content: object) -> None:
    if not content:
        raise Unreadable("a value without content")


@dataclass(frozen=True, repr=False)
class Expression:
    """A number or formula with its units.

    `units` maps units to their powers (`%` and currencies are units), and `words` says that other words follow.
    `other_reading` is the expression in which the letters behind the number are units. `decimals` counts the places of
    a number written in digits alone, and `sum` says that it is written as a sum.
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
    r"""Several values, compared as their `kind` says.

    Without an order: a `list`, a `set`, the `cases` of a plus-minus sign or of `or`, a `union`. With an order: a
    point or interval by its brackets, `()`, `[]`, `(]`, `[)`; a `2x3` matrix, row by row; a proportion `:`; a
    `chain < \le` of relations; `conditions` on several variables, by their names. `named` equations, by their
    names. `<`, `\le` or `\ne`: one formula, and 0 in that relation to it. `base 5`: digits. `clock`: hour, minute,
    second, and a (am), p (pm) or ""."""

    kind: str
    items: tuple

    def __post_init__(self):
        refuse_empty(self.items)

    def __repr__(self) -> str:
        return f"{self.kind} {', '.join(map(repr, self.items))}"


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
class Text:
    """Words, in lower case and without punctuation."""

    words: str

    def __post_init__(self):
        refuse_empty(self.words)


def value_of(value: object) -> object:
    """The value that an equation gives: 3 for x = 3."""
    return value.right if isinstance(value, Equation) and value.name else value
