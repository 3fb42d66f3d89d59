"""What a policy does to the grader for a million steps: look for one answer that is right for different problems.

Answers are made from the grader's own grammar: random tokens, every construct with nothing or next to nothing in it, and
mutations of real answers. None of them may be right for two golds, raise an exception, or get another verdict in a batch
than alone (but for the clock).
"""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_math.grading import equal_all
from grpo_math.grading.equal import settle
from grpo_math.grading.formula import STARTS
from grpo_math.grading.statements import KNOWN
from grpo_math.grading.tokens import SYNONYMS, UNICODE
from grpo_math.grading.units import SCALES, STOP, UNITS

MATH_GOLDS = r"""
\frac{3}{7} | \frac{11}{13} | -\frac{5}{9} | 7\frac{2}{11} | \frac{1}{1009} | 3\sqrt{2} | \frac{\sqrt{3}}{5} | 2+\sqrt{7} | \sqrt[3]{19}
\frac{-1+\sqrt{5}}{2} | 6\pi | \frac{\pi}{8} | 12+\pi | \frac{\pi^2}{10} | e^3 | \ln 23 | \log_2 29 | \sin 31^\circ | \arctan 33 | \cos\frac{\pi}{37}
3+4i | -2i | 1-i\sqrt{5} | e^{i\pi/5} | 41\% | 43^\circ | \$47.50 | 59\text{ cm} | 61\text{ kg} | 67\text{ m/s} | 71\text{ cm}^2 | 73\text{ hours}
79\text{ students} | 4:45\text{ p.m.} | 7:15 | 8:9 | 2:5:7 | 2013_{4} | 10110_2 | 3AF_{16} | 6.02\times10^{23} | 0.\overline{123} | 10^{-9}
x^2+1 | 3x-2 | (x+1)(x-5) | \frac{x+1}{x-2} | 2^{n}-1 | n! | \binom{n}{3} | a^2-ab+b^2 | \frac{x}{y+z} | \sqrt{x+4} | |x-6| | \sin 2x | \tan x
\ln(x+8) | e^{2x} | x^{3/2} | p-q | 5r^5 | \frac{n(n+3)}{2} | \cot^2 x | f(x-1)+2 | a_1+a_2 | xyz | \alpha+\beta
y=4x+9 | x^2+y^2=36 | 3x+5y=7 | x=\frac{17}{19} | \frac{x^2}{9}+\frac{y^2}{4}=1 | f(x)=x^3-x | y=\ln x | xy=k
(5,-8) | (3,-2,1) | \left(\frac12,\frac{\pi}{3}\right) | (0,0) | (a,b) | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}5\\6\\7\end{pmatrix}
\begin{pmatrix}1&0\\0&1\end{pmatrix} | 8,9,10 | -6,6 | 1\pm\sqrt{3} | \{14,15\} | \{(1,2),(3,4)\} | \frac13,\frac14,\frac15 | x=21,y=22 | A,C,E
[0,1) | (2,\infty) | (-\infty,-3] | [-4,9] | (-\infty,2)\cup(5,\infty) | [1,2]\cup\{6\} | \mathbb{R} | \mathbb{Z} | x\ne 16 | x<-18 | \emptyset
2x+3y\le 6 | a<b<c | \mathbb{R}\setminus\mathbb{Z} | \frac{\pi}{4}+k\pi, k\in\mathbb{Z}
\text{yes} | \text{no} | \text{even} | \text{Tuesday} | \text{ellipse} | \text{(B)} | D | \text{Evelyn} | \text{June 20} | \text{all of them} | \text{neither}
\sum_{k=1}^{n} k^3 | \int_0^1 f(x)\,dx | \lfloor x\rfloor | \infty | -\infty | 2^{100}-3^{50} | 2^6 3^5 5^4 | \frac{1}{2025!} | 9^{9^9} | \sqrt{17}-\sqrt{11}
"""
chance = random.Random(17)
GSM8K_GOLDS = [str(n) for n in chance.sample([n for n in range(-40, 20_000) if abs(n) > 400 or n > 80], 90)]
GSM8K_GOLDS += [
    f"{n},{m:03}" for n, m in zip(chance.sample(range(21, 900), 20), chance.sample(range(1_000), 20), strict=True)
]
GSM8K_GOLDS += [
    f"{n}.{m}" for n, m in zip(chance.sample(range(100, 400), 30), chance.sample(range(11, 99, 2), 30), strict=True)
]
GSM8K_GOLDS += ["0", "1", "2", "0.5", "-7", "0.07"]
GOLDS = [gold.strip() for line in MATH_GOLDS.splitlines() for gold in line.split(" | ") if gold.strip()] + GSM8K_GOLDS

NOTHINGS = ["", " ", "{}", "{,}", "{;}", ",", ";", ":", "&", r"\\", r"\land", r"\lor", r"\&", "and", "or", r"\text{}", r"\text{ and }",
            r"\ ", r"\quad", r"\phantom{2}", r"\square", "?", "...", r"\ldots", r"\cdot", "=", r"\approx", "-", "+", r"\pm", "/", "^", "_", "!",
            "%", r"\%", "$", r"\$", r"^\circ", "'", '"', "|", r"\mid", "(", ")", r"\{", r"\}", "[", "]", r"\varnothing", "\u200b", "。", "\uff0c"]  # fmt: skip
NEXT_TO_NOTHING = ["0", r"\infty", r"\ln 1", r"\sin\pi"]
CONSTRUCTS = [r"{%s}", r"(%s)", r"[%s]", r"\{%s\}", r"\left(%s\right)", r"\langle %s\rangle", r"|%s|", r"\lfloor %s\rfloor", r"(%s,%s)", r"[%s,%s)",
              r"]%s,%s[", r"\{%s,%s\}", r"%s,%s", r"%s;%s", r"%s \text{ and } %s", r"%s \text{ or } %s", r"%s\cup %s", r"%s\cap %s", r"%s\setminus %s",
              r"%s\land %s", r"%s\in %s", r"%s=%s", r"x=%s", r"%s=x", r"x\ne %s", r"x<%s", r"%s<x<%s", r"%s\le %s", r"%s\approx %s", r"%s\sim %s",
              r"%s:%s", r"%s_{%s}", r"%s_2", r"%s^{%s}", r"%s^2", r"\frac{%s}{%s}", r"%s/%s", r"\sqrt{%s}", r"\sqrt[%s]{%s}", r"\binom{%s}{%s}", r"%s!",
              r"{%s\over %s}", r"%s\cdot %s", r"%s%s", r"%s+%s", r"%s-%s", r"-%s", r"\pm %s", r"%s\pm %s", r"\sin %s", r"\log_{%s}%s", r"f(%s)", r"|%s|=%s",
              r"\text{%s}", r"\mathrm{%s}", r"\mathbb{%s}", r"\overline{%s}", r"0.\overline{%s}", r"\boxed{%s}", r"\%s", r"%s\%%", r"%s^\circ", r"\$%s",
              r"%s\text{ cm}", r"%s\text{ %s}", r"%s \text{ million}", r"(%s) %s", r"\text{(%s)} %s", r"%s \text{ to } %s", r"%s:%s \text{ p.m.}",
              r"\begin{pmatrix}%s\end{pmatrix}", r"\begin{bmatrix}%s\\%s\end{bmatrix}", r"\begin{array}{c}%s\end{array}", r"\begin{vmatrix}%s&%s\end{vmatrix}",
              r"\begin{aligned}%s&=%s\end{aligned}", r"\begin{cases}%s\\%s\end{cases}", r"\{x : %s\}", r"\{x\in %s \mid %s\}", r"\det %s=%s", r"\sum_{%s} %s",
              r"\lim_{%s}%s", r"\int_{%s}^{%s} x", r"\vec{%s}", r"%s\mathbf{i}+%s\mathbf{j}", r"%s \implies %s", r"\therefore %s", r"%s \pmod{%s}"]  # fmt: skip
TOKENS = sorted(
    STARTS | KNOWN | SYNONYMS.keys() | {m for m in UNITS if m.isascii()} | SCALES.keys() | STOP | UNICODE.keys()
)
TOKENS += [
    "0",
    "1",
    "2",
    "5",
    "10",
    "0.5",
    "x",
    "y",
    "n",
    "i",
    "e",
    "k",
    "A",
    "B",
    "{",
    "}",
    "(",
    ")",
    "\\text{",
    "}",
    "_",
    "^",
    ",",
    "=",
] * 12


NOTHING, TOKEN = st.sampled_from(NOTHINGS + NEXT_TO_NOTHING), st.sampled_from(TOKENS)


def equal(gold: str, answer: str) -> tuple[bool | None, str]:
    return equal_all([(gold, answer)])[0]


def filled(part):
    """A construct with such parts in its places."""
    form = st.sampled_from(CONSTRUCTS)
    return form.flatmap(lambda form: st.tuples(*[part] * len(re.findall("%s", form))).map(lambda parts: form % parts))


def pieces(text: str) -> list[str]:
    """Macros and single characters."""
    return re.findall(r"\\[a-zA-Z]+|.", text, re.DOTALL)


@st.composite
def mutated(draw) -> str:
    """A real answer with pieces lost, doubled, replaced or inserted; sometimes spliced with another."""
    cut = pieces(draw(st.sampled_from(GOLDS)))
    if draw(st.booleans()):
        other = pieces(draw(st.sampled_from(GOLDS)))
        cut = cut[: draw(st.integers(0, len(cut)))] + other[draw(st.integers(0, len(other))) :]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(cut)))
        piece = draw(
            st.just([]) | NOTHING.map(lambda one: [one]) | TOKEN.map(lambda one: [one]) | st.just(cut[at : at + 1] * 2)
        )
        cut[at : at + draw(st.integers(0, 2))] = piece
    return "".join(cut)


RANDOM = st.tuples(st.sampled_from(["", " "]), st.lists(TOKEN, max_size=9)).map(lambda drawn: drawn[0].join(drawn[1]))
CONSTRUCT = st.recursive(NOTHING | NOTHING | TOKEN, filled, max_leaves=4)
ANSWERS = (
    filled(NOTHING) | CONSTRUCT | CONSTRUCT.flatmap(lambda text: filled(st.just(text) | NOTHING)) | mutated() | RANDOM
)


def check(answer: str, workers: int, rng: random.Random) -> None:
    """Against all golds, in the exact tiers, which must not raise. What they leave open, math_verify is asked about, for
    so many golds; an exception of its own is the verdict `crashed`, and never a reward."""
    verdicts = {gold: settle(gold, answer) for gold in GOLDS}
    open_ = [gold for gold, (correct, how) in verdicts.items() if correct is None and how == "math_verify"]
    asked = rng.sample(open_, min(workers, len(open_)))
    verdicts |= dict(zip(asked, equal_all([(gold, answer) for gold in asked]), strict=True))
    right = [gold for gold, (correct, _) in verdicts.items() if correct]
    assert len(right) < 2, f"{answer!r} is right for {right}"
    alone = rng.sample(GOLDS, 3) + asked[:1]
    assert [equal(gold, answer)[0] for gold in alone] == [
        correct for correct, _ in equal_all([(gold, answer) for gold in alone])
    ]
    assert all(settle(gold, answer) == verdicts[gold] for gold in alone[:3] if gold not in asked)


def count(node, answers: int) -> None:
    node.user_properties[:] = [("tried", f"{answers:,} answers tried on {len(GOLDS)} golds")]


def test_the_golds_are_different():
    pairs = [(one, two) for at, one in enumerate(GOLDS) for two in GOLDS[:at]]
    assert not [pair for pair in pairs if settle(*pair)[0] or settle(*pair[::-1])[0]]
    assert len(GOLDS) > 250
    assert all(settle(gold, gold)[0] for gold in GOLDS)


@pytest.mark.parametrize("each", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_nothing_in_any_construct_is_right_for_two_golds(request, each):
    """Each construct with the same nothing in all its places; zeros and infinities are next to nothing: 0:0."""
    fillings = [*NOTHINGS[::each], "", *NEXT_TO_NOTHING]
    answers = {form.replace("%s", nothing).replace("%%", "%") for form in CONSTRUCTS for nothing in fillings}
    for answer in sorted(answers | set(NOTHINGS)):
        check(answer, 2, random.Random(0))
    count(request.node, len(answers))


SILENT = [
    HealthCheck.too_slow,
    HealthCheck.function_scoped_fixture,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
]


@settings(max_examples=1_000, deadline=None, suppress_health_check=SILENT)
@given(answer=ANSWERS, rng=st.randoms(use_true_random=False))
def test_no_answer_is_right_for_two_golds(request, tried, answer, rng):
    check(answer, 0, rng)
    tried.append(answer)
    count(request.node, len(tried))


@pytest.mark.slow
@settings(max_examples=15_000, deadline=None, suppress_health_check=SILENT)
@given(answer=ANSWERS, rng=st.randoms(use_true_random=False))
def test_no_answer_of_very_many_is_right_for_two_golds(request, tried, answer, rng):
    check(answer, 1, rng)
    tried.append(answer)
    count(request.node, len(tried))


@pytest.fixture(scope="module")
def tried() -> list[str]:
    return []
