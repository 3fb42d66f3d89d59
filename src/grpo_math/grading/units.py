"""What may follow a number: units with their powers, words of scale, nouns; and the words that make it another answer.

The words are in tables.toml. A unit is known by one name and never converted: `km` and `m` are two units. Nouns that
are in no table, as in "5 apples", are no units."""

import re
import tomllib
from collections import Counter
from fractions import Fraction
from importlib.resources import files
from typing import NamedTuple

from grpo_math.grading.algebra import Unreadable

TABLES = tomllib.loads((files("grpo_math.grading") / "tables.toml").read_text(encoding="utf-8"))
CJK = r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # kana, Chinese characters, hangul
RAW = set("mgshlLNWJVkKM")  # letters that may be units, or thousands and millions, without a text macro
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
SCALES = {word: Fraction(factor) for word, factor in TABLES["scales"].items()}
STOP = {word for words in TABLES["stop"].values() for word in words.split()}


def powers(unit: str) -> Counter:
    """`mi/h` and `cm3` as powers of units."""
    above, _, below = unit.partition("/")
    found = Counter({above.rstrip("23"): int(above[-1]) if above[-1] in "23" else 1})
    found.subtract([below] if below else [])
    return found


UNITS = {name: powers(unit) for unit, others in TABLES["units"].items() for name in (unit, *others.split())} | {
    name: Counter({short + symbols.split()[0]: 1})
    for short, long in [("", ""), *TABLES["prefixes"].items()]
    for symbols, words in TABLES["metric"].items()
    for name in (
        *(short + symbol for symbol in symbols.split()),
        *(long + word + s for word in words.split() for s in ("", "s")),
    )
}
CURRENCIES = {"dollar", "euro", "lb", "yen", "rupee"}  # units that may stand before the number; £ is read as pounds
CHINESE = "|".join(
    sorted(filter(re.compile(CJK).match, [*UNITS, *SCALES, *TABLES["measure_words"]]), key=len, reverse=True)
)
ITEM = re.compile(
    rf"(?P<over>/|\bper\b|每)|(?P<word>(?:(?!{CJK})[^\W\d_])+|{CHINESE}|%|\\Omega)|\^\s*\{{?\s*(?P<power>-?\d)\s*\}}?(?!\d)"
    r"|[\s.,(){}']|(?<=\w)-(?=\w)|\\cdot"
)


class Units(NamedTuple):
    """What follows a number: a factor, powers of known units, and whether there are other words."""

    scale: Fraction
    powers: Counter
    words: bool


NO_UNITS = Units(Fraction(1), Counter(), False)


def read_units(text: str) -> Units:
    """The units that a text names. Raises Unreadable for anything that is no noun, unit, power or quotient of those."""
    if not text:
        return NO_UNITS
    scale, found, words = Fraction(1), Counter(), False
    sign = raised = 1
    last, at = Counter(), 0
    while at < len(text):
        item = ITEM.match(text, at)
        if not item or (item["word"] or "").lower() in STOP - (POWERS.keys() if last else set()):
            raise Unreadable("something that is no unit")
        at, value = item.end(), item[item.lastgroup or 0]
        if item["over"]:
            sign = -1
        elif item["power"] and not (last or words):
            raise Unreadable("a power of nothing")
        elif item["power"] or (last and value in ("squared", "cubed")):
            times = int(value) if item["power"] else POWERS[value]
            found.update({unit: power * (times - 1) for unit, power in last.items()})
        elif value in POWERS:
            raised = POWERS[value]
        elif factor := item["word"] and (SCALES.get(value) or SCALES.get(value.lower().removesuffix("s"))):
            if found or words or sign < 0:
                raise Unreadable("a scale behind a unit")
            scale *= factor
        elif unit := item["word"] and (UNITS.get(value) or (len(value) > 2 and UNITS.get(value.lower()))):
            last = Counter({name: power * sign * raised for name, power in unit.items()})
            found.update(last)
            sign = raised = 1
        elif item["word"] and value not in TABLES["measure_words"]:
            words, last = True, Counter()
    return Units(scale, Counter({unit: power for unit, power in found.items() if power}), words)
