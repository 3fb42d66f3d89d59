"""What may follow a number: units with their powers, words of scale, nouns; and the words that make it another answer.

The words are in tables.toml. A unit is known by one name and never converted: `km` and `m` are two units. Nouns
that are in no table (5 apples) are ignored."""

import re
import tomllib
from fractions import Fraction
from pathlib import Path

from grpo_math.grading.algebra import Unreadable

TABLES = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
CJK = r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # kana, Chinese characters, hangul
RAW = set("mgshlLNWJVkKM")  # letters that may be units, or thousands and millions, without a text macro
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
SCALES = {word: Fraction(factor) for word, factor in TABLES["scales"].items()}
STOP = {word for words in TABLES["stop"].values() for word in words.split()}


def powers(unit: str) -> dict[str, int]:
    """`mi/h` and `cm3` as powers of units."""
    above, _, below = unit.partition("/")
    return {above.rstrip("23"): int(above[-1]) if above[-1] in "23" else 1} | ({below: -1} if below else {})


UNITS = {name: powers(unit) for unit, others in TABLES["units"].items() for name in (unit, *others.split())} | {
    name: {short + symbols.split()[0]: 1}
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


def read_units(text: str) -> tuple[Fraction | int, dict[str, int], bool]:
    """What follows a number: a factor, powers of known units, and whether there are other words. Raises Unreadable for
    anything but nouns, units, their powers and quotients."""
    scale: Fraction | int = 1
    found: dict[str, int] = {}
    last: dict[str, int] = {}
    words, sign, raised, at = False, 1, 1, 0
    while at < len(text):
        item = ITEM.match(text, at)
        word = (item["word"] if item else None) or ""
        if not item or (word and word.lower() in STOP and not (last and word in POWERS)):
            raise Unreadable("something that is not a unit")
        at = item.end()
        if item["over"]:
            sign = -1
        elif item["power"] or (last and word in ("squared", "cubed")):
            if not (last or words):
                raise Unreadable("a power of nothing")
            times = int(item["power"] or POWERS[word]) - 1
            found |= {unit: found[unit] + power * times for unit, power in last.items()}
        elif word in POWERS:
            raised = POWERS[word]
        elif factor := word and (SCALES.get(word) or SCALES.get(word.lower().removesuffix("s"))):
            if found or words or sign < 0:
                raise Unreadable("a scale behind a unit")
            scale *= factor
        elif unit := word and (UNITS.get(word) or (len(word) > 2 and UNITS.get(word.lower()))):
            last = {name: power * sign * raised for name, power in unit.items()}
            found |= {name: found.get(name, 0) + power for name, power in last.items()}
            sign = raised = 1
        elif word and word not in TABLES["measure_words"]:
            words, last = True, {}
    return scale, {unit: power for unit, power in found.items() if power}, words


def only_units(text: str) -> bool:
    """Whether it is a product or quotient of powers of several units: m s^{-2}, but not A^2."""
    if "^" not in text:
        return False
    try:
        _, powers, words = read_units(text)
        return len(powers) > 1 and not words
    except Unreadable:
        return False
