r"""Exact values for answers: ratios of integer polynomials in named atoms.

An atom is a symbol (`x`, `\pi`), the square root of a prime (`√5`) or the imaginary unit (`√-1`). Squares of roots are
multiplied out at once, and the roots of different squarefree numbers are linearly independent over the rationals
(Besicovitch 1940), so a/b = c/d exactly when the polynomials ad and bc are the same. What is not a rational function
(a sine, a cube root, 2^n) becomes an `opaque` atom under its own name. Equal polynomials in opaque atoms still mean
equal values. Different ones prove nothing, unless the values already differ in double precision, with a number for
every symbol: floats can refuse an answer here, and never accept one.
"""

import hashlib
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_BITS = 32_000  # of one coefficient: 2^2005 and 2025! fit, 9^(9^9) does not
MAX_PRINTED = 14_000  # bits of an integer that is written in decimal digits (Python's limit is 4,300 digits)
MAX_TERMS = 2_000  # of products of two polynomials
MAX_EXPONENT = 1_000  # of a polynomial
MAX_FACTORIAL = 2_500
MAX_NAME = 200  # of an opaque atom, in characters
CLOSE = 1e-6  # relative difference above which two floats count as different values
CONSTANTS = {r"\pi": math.pi, "e": math.e, r"\infty": math.inf}
Value = float | complex | None  # None: not a number, or out of range
Opaque = dict[str, tuple[Value, Value]]  # atom -> its value, and that with a value for every symbol
VARIABLE = re.compile(
    r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z(])|\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi"
    r"|rho|sigma|tau|phi|chi|psi|omega|ell)(?![a-zA-Z])"
)

Poly = dict[tuple[tuple[str, int], ...], int]  # monomial, as sorted (atom, exponent) pairs -> coefficient, never 0


class Unreadable(Exception):
    """Not in the language that this grader reads."""


class Meaningless(Exception):
    """Parsed, but cannot be an answer: a statement that is false or always true."""


class TooBig(Exception):
    """An answer that would take too much time or memory to evaluate."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """numerator / denominator. `opaque` holds the atoms that may hide a relation to others."""

    numerator: Poly
    denominator: Poly
    opaque: Opaque | None = None

    def __add__(self, other: "Ratio") -> "Ratio":
        left, right, bottom = self.numerator, other.numerator, self.denominator
        if bottom != other.denominator:
            left, right = times(left, other.denominator), times(right, bottom)
            bottom = times(bottom, other.denominator)
        total = {monomial: left.get(monomial, 0) + right.get(monomial, 0) for monomial in left | right}
        return Ratio({monomial: factor for monomial, factor in total.items() if factor}, bottom, self.both(other))

    def __neg__(self) -> "Ratio":
        return Ratio({monomial: -factor for monomial, factor in self.numerator.items()}, self.denominator, self.opaque)

    def __sub__(self, other: "Ratio") -> "Ratio":
        return self + -other

    def __mul__(self, other: "Ratio") -> "Ratio":
        top, bottom = times(self.numerator, other.numerator), times(self.denominator, other.denominator)
        return Ratio(top, bottom, self.both(other))

    def __truediv__(self, other: "Ratio") -> "Ratio":
        endless = any(name == r"\infty" for monomial in other.numerator for name, _ in monomial)
        if not other.numerator or endless or (other.opaque and other.near() == 0):
            raise Unreadable("division by zero or infinity")
        return self * Ratio(other.denominator, other.numerator, other.opaque)

    def both(self, other: "Ratio") -> Opaque | None:
        return self.opaque | other.opaque if self.opaque and other.opaque else self.opaque or other.opaque

    def fraction(self) -> tuple[int, int] | None:
        """(numerator, denominator) of a rational number, else None."""
        if self.numerator.keys() <= {()} and self.denominator.keys() == {()}:
            return self.numerator.get((), 0), self.denominator[()]
        return None

    def near(self, sampled: bool = False) -> Value:
        """The value in double precision; None out of range, and with a symbol in it unless these are `sampled`."""
        try:
            top, bottom = (
                [factor * math.prod(self.at(name, sampled) ** power for name, power in one) for one, factor in part]
                for part in (self.numerator.items(), self.denominator.items())
            )
            value = sum(top) / sum(bottom)
            if sampled and any(abs(sum(terms)) < CLOSE * sum(map(abs, terms)) for terms in (top, bottom)):
                return None  # the terms cancel, and with them the digits
            return value.real if isinstance(value, complex) and abs(value.imag) <= CLOSE**2 * abs(value) else value
        except (ArithmeticError, TypeError):  # a symbol has no value
            return None

    def at(self, name: str, sampled: bool) -> Any:
        if name[0] == "√":
            return math.sqrt(int(name[1:])) if name[1] != "-" else 1j
        if name in CONSTANTS:
            return CONSTANTS[name]
        sample = (sum(name.lower().encode(errors="replace")) % 89 + 7) / 97 if sampled else None
        return (self.opaque or {}).get(name, (None, sample))[sampled]

    def variables(self) -> set[str]:
        """The letters it depends on: x of sin(x), none of f(2) and \\pi."""
        names = {name for monomial in (*self.numerator, *self.denominator) for name, _ in monomial} - CONSTANTS.keys()
        return {letter for name in names for letter in VARIABLE.findall(name)} - CONSTANTS.keys()

    def __str__(self) -> str:
        """Readable, and the same for the same ratio of polynomials up to a polynomial factor."""
        shared = math.gcd(*self.numerator.values(), *self.denominator.values())
        shared = -shared if self.denominator[min(self.denominator)] < 0 else shared
        top, bottom = (printed(part, shared) for part in (self.numerator, self.denominator))
        return top if bottom == "1" else f"({top})/({bottom})" if len(top + bottom) > 12 else f"{top}/{bottom}"


def printed(poly: Poly, divisor: int) -> str:
    terms = []
    for monomial, factor in sorted(poly.items()):
        powers = [name if exponent == 1 else f"{name}^{exponent}" for name, exponent in monomial]
        factor //= divisor
        shown = f"{factor:x}h" if factor.bit_length() > MAX_PRINTED else str(factor)
        terms.append("*".join([shown, *powers] if factor != 1 or not powers else powers))
    return " + ".join(terms) or "0"


def number(numerator: int, denominator: int = 1) -> Ratio:
    return Ratio({(): numerator} if numerator else {}, {(): denominator})


def atom(name: str, opaque: Opaque | None = None) -> Ratio:
    return Ratio({((name, 1),): 1}, {(): 1}, opaque)


def opaque(name: str, compute: Callable | None = None, *arguments: Ratio) -> Ratio:
    """A value that is not a rational function, identified by its name (hashed if long). `compute` is its function on
    floats, if there is one."""
    if len(name) > MAX_NAME:
        name = f"{name[:20]}...{hashlib.sha256(name.encode(errors='replace')).hexdigest()}"
    values: list[Value] = [None, None]
    for sampled in (False, True):
        with suppress(ArithmeticError, TypeError, ValueError):
            values[sampled] = compute(*(argument.near(sampled) for argument in arguments)) if compute else None
    return atom(name, {name: (values[0], values[1])})


def times(left: Poly, right: Poly) -> Poly:
    if len(left) * len(right) > MAX_TERMS:
        raise TooBig
    result: Poly = {}
    for one, p in left.items():
        for two, q in right.items():
            monomial, square = merge(one, two)
            result[monomial] = result.get(monomial, 0) + p * q * square
            if result[monomial].bit_length() > MAX_BITS:
                raise TooBig
    return {monomial: factor for monomial, factor in result.items() if factor}


def merge(one: tuple, two: tuple) -> tuple[tuple, int]:
    """The product of two monomials, and the integer factor from squared roots."""
    if not one or not two:
        return one or two, 1
    powers, square = dict(one), 1
    for name, exponent in two:
        exponent += powers.get(name, 0)
        if name[0] == "√" and exponent == 2:
            square *= int(name[1:])
            exponent = 0
        powers[name] = exponent
    return tuple(sorted(item for item in powers.items() if item[1])), square


def power(base: Ratio, exponent: Ratio) -> Ratio:
    """base ^ exponent; opaque unless the exponent is a multiple of 1/2."""
    ratio = exponent.fraction()
    if ratio is None:
        return opaque(f"({base})^({exponent})", pow, base, exponent)
    top, bottom = Fraction(*ratio).as_integer_ratio()
    if bottom > MAX_EXPONENT:
        raise TooBig
    if bottom > 1:
        return power(root(base, bottom), number(top))
    if top < 0:
        base, top = number(1) / base, -top
    bits = max(abs(factor).bit_length() for part in (base.numerator, base.denominator) for factor in part.values())
    plain = base.fraction()
    if bits * top > MAX_BITS or (top > MAX_EXPONENT and not plain):
        raise TooBig
    if plain:
        return number(plain[0] ** top, plain[1] ** top)
    if not top:
        return number(1)
    half = power(base, number(top // 2))
    return half * half * base if top % 2 else half * half


def root(base: Ratio, degree: int) -> Ratio:
    """The principal root. Square roots of rational numbers are exact; other roots only of perfect powers."""
    if ratio := base.fraction():
        numerator, denominator = ratio
        if degree == 2:
            outside, inside = squarefree(numerator * denominator)
            result = number(outside, abs(denominator))
            for prime in inside:
                result *= opaque(f"√{prime}") if prime > 1_000_000 else atom(f"√{prime}")
            return result
        if degree % 2 and numerator * denominator < 0:
            return -root(-base, degree)
        if numerator >= 0 < denominator and degree < 64:
            over, under = perfect_root(numerator, degree), perfect_root(denominator, degree)
            if over is not None and under is not None:
                return number(over, under)
    return opaque(f"root{degree}({base})", lambda value: value ** (1 / degree), base)


@lru_cache(maxsize=2**12)
def squarefree(value: int) -> tuple[int, tuple[int, ...]]:
    """value = outside^2 * product(inside), inside distinct primes and -1; a part without a factor below 1,000 stays
    whole, and is prime if it is below 1,000,000."""
    if value.bit_length() > 200:
        raise TooBig
    inside, outside, value = ([-1] if value < 0 else []), 1, abs(value)
    for divisor in range(2, min(1_000, math.isqrt(value) + 1)):
        while value % divisor**2 == 0:
            value //= divisor**2
            outside *= divisor
        if value % divisor == 0:
            value //= divisor
            inside.append(divisor)
    whole = math.isqrt(value)
    return (outside * whole, tuple(inside)) if whole * whole == value else (outside, (*inside, value))


def perfect_root(value: int, degree: int) -> int | None:
    """The integer whose `degree`-th power is `value` >= 0, if there is one."""
    guess = round(value ** (1 / degree)) if value.bit_length() < 1_000 else -1
    return next((near for near in (guess - 1, guess, guess + 1) if near >= 0 and near**degree == value), None)


def equal(gold: Ratio, answer: Ratio) -> bool | None:
    """Whether two values are the same; None when something opaque in them leaves it open."""
    one, other = gold.fraction(), answer.fraction()
    if one and other:
        return one[0] * other[1] == other[0] * one[1]
    if times(gold.numerator, answer.denominator) == times(answer.numerator, gold.denominator):
        return True
    return None if (gold.opaque or answer.opaque) and not apart(gold.near(True), answer.near(True)) else False


def apart(one: Value, other: Value) -> bool:
    """Whether two values differ for certain, by far more than double precision rounds."""
    if one is None or other is None or one == other:
        return False
    one, other = one / 2, other / 2  # whose difference cannot overflow
    return not abs(one - other) <= CLOSE * min(max(abs(one), abs(other), 1e-3), 1e300)  # nan equals nothing


def proportional(gold: Ratio, answer: Ratio, signed: bool) -> bool | None:
    """Whether gold = c * answer, with a positive constant c if `signed`; None if something opaque leaves it open."""
    left, right = times(gold.numerator, answer.denominator), times(answer.numerator, gold.denominator)
    first = next(iter(left), ())
    same = left.keys() == right.keys() and all(left[one] * right[first] == right[one] * left[first] for one in left)
    if left and same and (not signed or left[first] * right[first] > 0):
        return True
    return None if gold.opaque or answer.opaque else False
