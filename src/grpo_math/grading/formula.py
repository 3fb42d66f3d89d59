"""Formulas, by recursive descent from tokens to an exact `Ratio`, with currency, percent signs, units and words."""

import cmath
import math
import re
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from grpo_math.grading.algebra import MAX_FACTORIAL, Ratio, TooBig, Unreadable, atom, number, opaque, power, root
from grpo_math.grading.tokens import ACCENTS, ATOMS, FUNCTIONS, Token, written
from grpo_math.grading.units import CJK, CURRENCIES, RAW, UNITS, read_units
from grpo_math.grading.values import Expression, Text

MAX_DEPTH = 30
MAX_WORK = 20_000  # terms of all products of one formula
END = Token("", "", False)
RADIANS = atom(r"\pi") / number(180)
VALUES = {rf"\{name}": getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")} | {
    r"\cot": lambda value: 1 / cmath.tan(value), r"\sec": lambda value: 1 / cmath.cos(value),
    r"\csc": lambda value: 1 / cmath.sin(value), r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan,
    r"\ln": cmath.log, r"\log_10": cmath.log10, r"\log_2": lambda value: cmath.log(value, 2),
    r"\log_3": lambda value: cmath.log(value, 3),
}  # fmt: skip  # in double precision; \log without a base has none: it means base 10 to some, e to others
NO_SUM = re.compile(r"\^ (?:\{ [^{}]* \}|\( [^()]* \)|[+-] \S+|\S+)|\| \d+ - \d+ \|")
SUM = re.compile(r"(?:(?<=[\w)\]}!%+-])|(?<=[\w)\]}!] \|))(?<!\\cdot)(?<!\\cdot \|)(?<!\\frac) [+-] ")


class Parser:
    """Recursive descent over tokens: sum -> product -> power -> atom. Every method returns a `Ratio`."""

    def __init__(self, cut: list[Token]):
        self.tokens, self.at, self.depth, self.work = [*cut, END, END], 0, 0, 0
        self.raised = False  # whether the last factor ended with an exponent or !, so that a number can follow
        self.functions = 0  # whose argument is being read: degrees in it are turned into radians
        self.degrees = False  # whether there are degrees outside functions

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].text

    def kind(self) -> str:
        return self.tokens[self.at].kind

    def take(self) -> Token:
        token = self.tokens[self.at]
        if token is END:
            raise Unreadable("it ends too early")
        self.at += 1
        return token

    def whole(self) -> Ratio:
        value = self.sum()
        if self.tokens[self.at] is not END:
            raise Unreadable(f"{self.peek()} has no place")
        return value

    def sum(self) -> Ratio:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooBig
        value = self.product()
        while self.peek() in ("+", "-"):
            value = BINARY[self.take().text](value, self.product())
        if self.peek() in OVER:
            value = OVER[self.take().text](value, self.sum())
        self.depth -= 1
        return value

    def product(self) -> Ratio:
        value = self.signed()
        while True:
            self.work += len(value.numerator) + len(value.denominator)
            if self.work > MAX_WORK:
                raise TooBig
            if self.peek() in (r"\cdot", "/"):
                value = BINARY[self.take().text](value, self.signed())
            elif self.peek() == "{" and self.peek(1)[:1].isdigit() and self.peek(-1)[-1:] in "}0123456789":
                raise Unreadable("digits side by side, which TeX prints as one number")
            elif self.kind() == "symbol" or self.peek() in STARTS or (self.raised and self.kind() == "number"):
                value = value * self.power()
            else:
                return value

    def signed(self) -> Ratio:
        if self.peek() in ("+", "-"):
            return -self.signed() if self.take().text == "-" else self.signed()
        return self.power()

    def power(self) -> Ratio:
        value, self.raised = self.atom(), False
        while self.peek() in ("^", "!", r"\degree"):
            sign = self.take().text
            if sign != r"\degree":
                value, self.raised = factorial(value) if sign == "!" else power(value, self.exponent()), True
            elif self.functions:
                value = value * RADIANS
            else:
                self.degrees = True
        return value

    def exponent(self) -> Ratio:
        """The exponent of a tower: 3^2 in 2^3^2."""
        value = self.argument()
        if self.peek() == "^":
            self.take()
            value = power(value, self.exponent())
        return value

    def argument(self, one_digit: bool = False) -> Ratio:
        """The argument of a macro or ^: a group or the next token, of a number only `one_digit`, as in TeX."""
        if self.peek() == "{":
            return self.group("}")
        if self.peek() in ("+", "-"):
            return self.signed()
        if self.kind() == "number" and one_digit:
            token = self.tokens[self.at]
            if not token.text.isdigit():
                raise Unreadable
            self.tokens[self.at : self.at + 1] = [token._replace(text=token.text[1:])] if token.text[1:] else []
            return number(int(token.text[0]))
        return literal(self.take().text) if self.kind() == "number" else self.atom()

    def group(self, closing: str) -> Ratio:
        self.take()
        value = self.sum()
        if self.take().text != closing:
            raise Unreadable(f"{closing} is missing")
        return value

    def atom(self) -> Ratio:
        text, kind = self.peek(), self.kind()
        if kind == "number":
            return self.number()
        if text in GROUPS:
            return self.group(GROUPS[text])
        if kind == "symbol" or text in ATOMS or text in ACCENTS:
            return self.symbol()
        if text == "|":
            value = self.group("|")
            ratio = value.fraction()
            return number(abs(ratio[0]), abs(ratio[1])) if ratio else opaque(f"|{value}|", abs, value)
        self.take()
        if text == r"\frac":
            return self.argument(one_digit=True) / self.argument(one_digit=True)
        if text == r"\sqrt":
            degree = natural(self.group("]")) if self.peek() == "[" else 2
            if degree is None or not 2 <= degree <= 100:
                raise Unreadable
            return root(self.argument(), degree)
        if text == r"\binom":
            return binomial(self.argument(one_digit=True), self.argument(one_digit=True))
        if text in FUNCTIONS:
            return self.function(text)
        raise Unreadable(f"{text or 'nothing'} is not known")

    def number(self) -> Ratio:
        """A number; with a proper fraction behind it a mixed number: 1\\frac45, 1 4/5. 1 000 is a thousand."""
        token = self.take()
        digits = token.text
        if not digits.isdigit() and self.kind() == "number":
            raise Unreadable("two numbers in a row")
        if not digits.isdigit():
            return literal(digits)
        while len(token.text) < 4 and re.fullmatch(r"\d{3}", self.peek()) and self.peek(1) != "/":
            digits += self.take().text
        value = number(int(digits))
        if self.peek() == r"\frac" or (self.peek() == "{" and self.peek(1) == r"\frac"):
            part = self.atom()
        elif self.kind() == "number":
            over, slash, under = (self.take().text for _ in range(3))
            if not (over.isdecimal() and slash == "/" and under.isdecimal() and int(under)):
                raise Unreadable("two numbers in a row")
            part = number(int(over), int(under))
        else:
            return value
        ratio = part.fraction()
        if ratio and not 0 <= ratio[0] < ratio[1]:
            raise Unreadable("an improper fraction behind a number")
        return value + part if ratio else value * part

    def symbol(self) -> Ratio:
        name = self.take().text
        if name in ACCENTS:
            name += f"{{{self.raw()}}}"
        if self.peek() == "_":
            self.take()
            name += "_" + self.raw()
        while self.peek() == "'":
            name += self.take().text
        if self.peek() == "(" and name[0] in "fgFGP":
            return atom(f"{name}({self.group(')')})")
        return atom({"i": "√-1"}.get(name, name))

    def raw(self) -> str:
        """The text of an argument, unread."""
        text = self.take().text
        return "".join(iter(lambda: self.take().text, "}")) if text == "{" else text

    def function(self, name: str) -> Ratio:
        exponent = None
        while self.peek() in ("_", "^"):
            if self.take().text == "_":
                name += "_" + self.raw()
            else:
                exponent = self.argument()
        self.functions += 1
        if self.peek() in GROUPS:
            value = self.group(GROUPS[self.peek()])
        else:
            value = self.power()
            while self.kind() == "symbol" or self.peek() in ATOMS:
                value = value * self.power()
        self.functions -= 1
        name = r"\ln" if name == r"\log_e" else name
        if exponent is not None and exponent.fraction() == (-1, 1):
            name, exponent = name.replace("\\", r"\arc", 1), None
        result = power(atom("e"), value) if name == r"\exp" else opaque(f"{name}({value})", VALUES.get(name), value)
        return result if exponent is None else power(result, exponent)


GROUPS = {"(": ")", "[": "]", "{": "}"}
STARTS = ATOMS | ACCENTS | FUNCTIONS | GROUPS.keys() | {r"\frac", r"\sqrt", r"\binom"}  # a factor without a sign
BINARY = {"+": Ratio.__add__, "-": Ratio.__sub__, r"\cdot": Ratio.__mul__, "/": Ratio.__truediv__}


def literal(text: str) -> Ratio:
    """A number as written: 1,234.50 or 6e-5."""
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    whole, _, part = mantissa.partition(".")
    shift = int(exponent or 0) - len(part)
    if abs(shift) > 4_000:
        raise TooBig
    digits = int(whole + part)
    return number(digits * 10**shift) if shift >= 0 else number(digits, 10**-shift)


def natural(value: Ratio) -> int | None:
    """A whole number of at most MAX_FACTORIAL, None for a formula. Raises Unreadable for other numbers."""
    if (ratio := value.fraction()) is None:
        return None
    whole, rest = divmod(ratio[0], ratio[1])
    if rest or whole < 0:
        raise Unreadable("no whole number")
    if whole > MAX_FACTORIAL:
        raise TooBig
    return whole


def factorial(value: Ratio) -> Ratio:
    n = natural(value)
    return opaque(f"({value})!") if n is None else number(math.factorial(n))


def binomial(above: Ratio, below: Ratio) -> Ratio:
    n, k = natural(above), natural(below)
    return opaque(f"binomial({above},{below})") if n is None or k is None else number(math.comb(n, k))


OVER = {r"\over": Ratio.__truediv__, r"\choose": binomial}  # what TeX writes between two parts of a group


def read_expression(cut: list[Token]) -> Expression | Text:
    """A formula with its currency and units, or words. Raises Unreadable."""
    if cut and all(token.kind == "text" for token in cut):
        return Text(" ".join(token.text.strip().lower() for token in cut))
    first = 1 if len(cut) > 1 and cut[0].text == "-" else 0
    currency = dict(UNITS.get(cut[first].text, {})) if len(cut) > first and cut[first].kind == "text" else {}
    if currency.keys() & CURRENCIES:
        cut = cut[:first] + cut[first + 1 :]
    end = next((index for index in range(first + 1, len(cut)) if is_unit(cut, index)), len(cut))
    for before, one in pairwise(cut[end - 1 :] if end < len(cut) else ()):
        if one.kind == "symbol" and (one.text not in UNITS or before.text != "/"):
            raise Unreadable("a symbol behind a unit")
    found = expression(cut[:end], spelled(cut[end:]), currency)
    at = next((index for index, token in enumerate(cut[:end]) if token.text in RAW), 0)
    if at and cut[at - 1].kind == "number" and all(token.text in RAW or token.text in "/^{-}123" for token in cut[at:]):
        with suppress(Unreadable):  # \sqrt{2gh} and 2k - 1 hold no units
            return replace(found, other_reading=expression(cut[:at], spelled(cut[at:]).replace("K", "k"), currency))
    if spelled(cut[end:]).strip().startswith("dozen"):  # how many dozens?
        return replace(found, other_reading=expression(cut[:end], "", currency))
    return found


def expression(formula: list[Token], behind: str, currency: dict[str, int]) -> Expression:
    parser = Parser(formula)
    value = parser.whole()
    scale, powers, words = read_units(behind)
    units = {**currency, **powers} | ({"degree": 1} if parser.degrees else {})
    last = formula[-1].text if len(formula) == 1 or (len(formula) == 2 and formula[0].text == "-") else ""
    decimals = len(last.partition(".")[2]) if re.fullmatch(r"[\d,]*\.?\d+", last) else None
    scaled = value * number(*scale.as_integer_ratio()) if scale != 1 else value
    return Expression(scaled, units, words, None, decimals, is_sum(formula))


def is_sum(formula: list[Token]) -> bool:
    r"""Whether a plus or minus stands between terms, except in |5-11| and in exponents; those of e^{\ln(2+3)} count."""
    text = " ".join(written(formula))
    return SUM.search(text if FUNCTIONS.intersection(text.split()) else NO_SUM.sub("0", text)) is not None


def is_unit(cut: list[Token], at: int) -> bool:
    """Whether units begin here: a percent sign, or words behind a blank."""
    token = cut[at]
    if token.kind == "text":
        return token.spaced or token.text in UNITS or not token.text.isalpha() or re.match(CJK, token.text) is not None
    return token.text == "%" or (token.text in ("{", "(", "/") and at + 1 < len(cut) and cut[at + 1].kind == "text")


def spelled(cut: list[Token]) -> str:
    return "".join(f" {token.text}" if token.spaced else token.text for token in cut)
