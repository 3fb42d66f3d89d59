r"""A reward for text answers that no grader can call right or wrong: similarity to the reference.

It measures similarity, not truth, and a policy trained on it long enough exploits that: prefer a verdict
(`correctness`) or a reward model where there is one.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from grpo_math.data import completion_text
from grpo_math.grading import accepted

WORD = re.compile(r"[^\W\d_]{4,}")
OPERAND = r"[(\[{]{0,3}(?:\d[\d.,]*[A-Za-z]?|[A-Za-z](?![A-Za-z]))[)\]}]{0,3}"
FORMULA = re.compile(
    r"\$(?=\S)[^$\n]+(?<=\S)\$(?!\d)|\\\([^\n]{1,300}?\\\)|\\\[.{1,300}?\\\]"  # LaTeX, and no sums of money
    r"|\\[A-Za-z]+(?:\{[^{}\n]*\})*"  # a macro
    rf"|(?<!\w){OPERAND}(?:\s?[-+*/^<>=\u00d7\u00f7\u00b1\u2264\u2265\u2260\u2248]\s?{OPERAND})+",  # a+b, x = 5
    re.DOTALL,
)
ITEM = r"(?:step\s+\d+|\d+[.)]\s|[-*]\s)"  # how a line of a numbered or dashed list begins
LIST_ITEM = re.compile(rf"(?im)^[ \t]*{ITEM}")
CONNECTIVE = re.compile(r"(?i)\b(?:first|then|next|because|since|therefore|thus|hence|finally|so)\b")
COMMON = frozenset(  # words that say nothing about the subject
    "about also because been being both could does each from given have here into more most must only "  # noqa: SIM905
    "other over same should since some such than that their them then there therefore these they this those thus very "
    "were what when where which while will with would your".split()
)


def heuristic(
    completions: list,
    solution: list[str],
    worked: list[str | None] | None = None,
    log_metric: Callable | None = None,
    *,
    length: float = 0.2,
    formulas: float = 0.3,
    concepts: float = 0.3,
    structure: float = 0.2,
    **_: object,
) -> list[float]:
    """The weighted sum of four parts, each in [0, 1] and logged as `heuristic/PART`; 0 for an empty text.

    The reference is the worked solution where the problem has one, else the solution.
    `length`: shorter / longer of the two texts, in words. `formulas`: distinct formulas (LaTeX, equations), at most as
    many as the reference has, as a share of them; 1 where it has none. `concepts`: the share of the reference's
    key terms (words of four letters and more, without the commonest) that occur. `structure`: a third each for several
    lines, for a numbered or dashed list, for a connective such as "therefore". The settings are the parts' weights.
    """
    golds = [accepted(gold)[0] for gold in solution]
    references = [full or final for full, final in zip(worked or [None] * len(solution), golds, strict=True)]
    parts = [
        likeness(completion_text(completion), reference)
        for completion, reference in zip(completions, references, strict=True)
    ]
    if log_metric:
        for index, name in enumerate(("length", "formulas", "concepts", "structure")):
            log_metric(f"heuristic/{name}", sum(part[index] for part in parts) / len(parts))
    weights = (length, formulas, concepts, structure)
    return [sum(weight * value for weight, value in zip(weights, part, strict=True)) for part in parts]


def likeness(completion: str, reference: str) -> tuple[float, float, float, float]:
    """Length, formulas, concepts and structure of one completion, each in [0, 1]."""
    if not completion.strip():
        return 0.0, 0.0, 0.0, 0.0
    words, formulas, terms = features(completion)
    wanted_words, wanted_formulas, wanted_terms = features_of_reference(reference)
    signs = ("\n" in completion.strip(), LIST_ITEM.search(completion), CONNECTIVE.search(completion))
    return (
        min(words, wanted_words) / max(words, wanted_words),
        min(1.0, formulas / wanted_formulas) if wanted_formulas else 1.0,
        len(terms & wanted_terms) / len(wanted_terms) if wanted_terms else 1.0,
        sum(map(bool, signs)) / 3,
    )


def features(text: str) -> tuple[int, int, frozenset[str]]:
    """How many words, how many distinct formulas, which key terms."""
    terms = frozenset(word.lower() for word in WORD.findall(text)) - COMMON
    return len(text.split()), len(set(FORMULA.findall(text))), terms


features_of_reference = lru_cache(maxsize=1024)(features)
