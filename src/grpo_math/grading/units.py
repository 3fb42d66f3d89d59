"""What may follow a number: units with their powers, words of scale, nouns; and the words that make it another answer.

A unit is known by one name and never converted: `km` and `m` are two units. Nouns that stand in no table here, as in
"5 apples", are no units.
"""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from grpo_math.grading.algebra import Unreadable

CJK = r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # kana, Chinese characters, hangul
PREFIXES = {
    "": "", "k": "kilo", "M": "mega", "G": "giga", "T": "tera", "d": "deci", "c": "centi", "m": "milli", "µ": "micro",
    "n": "nano",
}  # fmt: skip
METRIC = {  # symbols -> words
    "m": "meter metre", "g": "gram gramme", "L l": "liter litre", "s": "second sec", "Hz": "hertz", "W": "watt",
    "J": "joule", "V": "volt", "A": "ampere amp", "N": "newton", "Pa": "pascal", "B": "byte", "Ω": "ohm",
    "mol": "mole", "cal": "calorie", "eV": "electronvolt",
}  # fmt: skip
ALIASES = {  # unit -> its other names
    "in": "inch inches", "ft": "foot feet", "yd": "yard yards yds", "mi": "mile miles", "oz": "ounce ounces",
    "lb": "pound pounds lbs", "min": "minute minutes mins 分钟", "h": "hour hours hr hrs 小时", "day": "days 天 日",
    "week": "weeks 周", "month": "months 月", "year": "years yr yrs 年", "gal": "gallon gallons", "acre": "acres",
    "ton": "tons tonne tonnes", "degree": "degrees deg 度", "rad": "radian radians", "celsius": "Celsius C",
    "fahrenheit": "Fahrenheit F", "kelvin": "K", "%": "percent percentage pct", "dollar": "dollars USD usd",
    "cent": "cents", "euro": "euros EUR", "yen": "JPY", "rupee": "rupees Rs INR", "yuan": "元 RMB", "mi/h": "mph",
    "km/h": "kph kmh kmph", "cm3": "cc 立方厘米", "m3": "立方米", "m2": "平方米", "cm2": "平方厘米", "km": "千米 公里",
    "m": "米", "cm": "厘米", "mm": "毫米", "g": "克", "kg": "kgs 千克 公斤", "L": "升", "mL": "毫升", "s": "secs 秒",
    "Ω": r"\Omega",
}  # fmt: skip
COUNTERS = "个只条张本支件辆棵名位人头匹块颗朵份种次页题组排行层座袋箱瓶杯桶根片枚粒对双岁倍"  # Chinese measure words
RAW = set("mgshlLNWJVkKM")  # letters that may be units, or thousands and millions, without a text macro
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
SCALES = {
    "dozen": 12, "score": 20, "gross": 144, "ten": 10, "hundred": 100, "thousand": 1_000, "k": 1_000, "lakh": 10**5,
    "million": 10**6, "M": 10**6, "mn": 10**6, "mil": 10**6, "crore": 10**7, "billion": 10**9, "bn": 10**9,
    "trillion": 10**12, "tn": 10**12, "quadrillion": 10**15, "quintillion": 10**18, "万": 10**4, "亿": 10**8,
} | {
    name: Fraction(1, below)
    for name, below in {
        "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
        "hundredth": 100, "thousandth": 1_000, "permille": 1_000, "mille": 1_000, "millionth": 10**6, "ppm": 10**6,
        "billionth": 10**9, "ppb": 10**9,
    }.items()
}  # fmt: skip
STOP = set(
    # alternatives, doubts, denials
    "or and not no nor none neither either maybe possibly perhaps unless except if is isnt vs versus otherwise instead "
    "false wrong incorrect invalid never cannot impossible "
    # taken back
    "rejected excluded eliminated discarded dismissed removed ignored refuted disproved ruled crossed cancelled "
    "canceled retracted withdrawn extraneous inadmissible "
    # a bound or a comparison
    "least most than between to below above under over beyond exceeding bound maximum minimum max upper lower up within "
    # more arithmetic
    "plus minus by mod modulo divided multiplied increased decreased reduced raised lowered halved doubled tripled "
    "twice double triple half halves squared cubed root factorial reciprocal inverse inverted reversed negative "
    "negated remainder off out base point because since "
    # numbers
    "zero one two three four five six seven eight nine eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety infinity".split()
)
ITEM = re.compile(
    r"(?P<word>[^\W\d_]+|%|\\[a-zA-Z]+)|\^\s*\{?\s*(?P<power>-?\d)\s*\}?(?!\d)|(?P<over>/)|[\s.,(){}']|(?<=\w)-(?=\w)"
)


def named() -> dict[str, Counter]:
    """Every name of a unit, with the powers of units it stands for."""
    names = {name: unit for unit, others in ALIASES.items() for name in (unit, *others.split())}
    for short, long in PREFIXES.items():
        for symbols, words in METRIC.items():
            unit = short + symbols.split()[0]
            spelled = [long + word for word in words.split()]
            names |= dict.fromkeys([*(short + symbol for symbol in symbols.split()), *spelled], unit)
            names |= dict.fromkeys([f"{word}s" for word in spelled], unit)
    return {name: powers(unit) for name, unit in names.items()}


def powers(unit: str) -> Counter:
    """`mi/h` and `cm3` as powers of units."""
    above, _, below = unit.partition("/")
    found = Counter({above.rstrip("23"): int(above[-1]) if above[-1] in "23" else 1})
    found.subtract([below] if below else [])
    return found


UNITS = named()
CURRENCIES = ("dollar", "euro", "lb", "yen", "rupee")  # units that may stand before the number; £ is read as pounds
CHINESE = re.compile("|".join(sorted(filter(re.compile(CJK).match, [*UNITS, *SCALES, *COUNTERS]), key=len)[::-1]))


class Units(NamedTuple):
    """What follows a number: a factor, powers of known units, and whether there are other words."""

    scale: Fraction
    powers: Counter
    other: bool


def read_units(text: str) -> Units:
    """The units that a text names. Raises Unreadable for anything that is no noun, unit, power or quotient of those."""
    scale, found, other = Fraction(1), Counter(), False
    sign, pending, last = 1, 1, Counter()
    for kind, value in items(text):
        if kind == "over" or value in ("per", "每"):
            sign = -1
        elif kind == "power" or (value in ("squared", "cubed") and last):
            times = int(value) if kind == "power" else POWERS[value]
            found.update({unit: power * (times - 1) for unit, power in last.items()})
        elif value in STOP:
            raise Unreadable("words that are no units")
        elif value in POWERS:
            pending = POWERS[value]
        elif factor := SCALES.get(value) or SCALES.get(value.lower().removesuffix("s")):
            if found or other:
                raise Unreadable("a scale behind a unit")
            scale *= factor
        elif unit := UNITS.get(value) or (len(value) > 2 and UNITS.get(value.lower())):
            last = Counter({name: power * sign * pending for name, power in unit.items()})
            found.update(last)
            sign = pending = 1
        elif value not in COUNTERS:
            other, last = True, Counter()
    return Units(scale, Counter({unit: power for unit, power in found.items() if power}), other)


def items(text: str) -> list[tuple[str, str]]:
    """The words, powers and slashes of a text."""
    found, at = [], 0
    while at < len(text):
        item = ITEM.match(text, at)
        if not item:
            raise Unreadable("something behind a unit")
        at = item.end()
        word = item["word"]
        if word and re.match(CJK, word):
            pieces = CHINESE.findall(word)
            if "".join(pieces) != word:
                raise Unreadable("words that are no units")
            found += [("word", piece) for piece in pieces]
        elif word and word[0] == "\\" and word not in UNITS:
            if word != r"\cdot":
                raise Unreadable("a macro behind a unit")
        elif item.lastgroup:
            found.append((item.lastgroup, word.lower() if word and word.lower() in STOP else item[item.lastgroup]))
    return found
