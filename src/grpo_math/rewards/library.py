r"""The shipped rewards: plain functions, one score per completion.

Each takes TRL's keyword arguments by name (`completions`, `completion_ids`, any dataset column, `log_metric`, ...) and
from the run, where it names them, `template` (the `PromptTemplate`), `grades` (the batch's verdicts) and
`max_completion_length` (tokens). Keyword-only parameters are its settings in the recipe. Lengths are in tokens.
"""

import math
import random as generator
import re
from collections.abc import Callable
from functools import lru_cache

from grpo_math.data import PromptTemplate, completion_text
from grpo_math.grading import Grade, accepted, well_formed

FAILED = {"timeouts": "timeout", "crashed": "crashed"}  # metric of a grade that failed -> its `how`
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
STEP = re.compile(rf"(?i)\s*{ITEM}|[^=]*\w\s*=\s*\S")
FOREIGN = re.compile(  # neither Latin, Greek nor mathematical
    r"[^\W\d_A-Za-z\u00aa-\u02af\u0370-\u03ff\u1d00-\u1dbf\u1e00-\u1fff\u2071\u207f\u2090-\u209c\u2100-\u214f"
    r"\u2c60-\u2c7f\ua720-\ua7ff\ufb00-\ufb06\uff21-\uff5a\U0001d400-\U0001d7ff]"
)
LIMITS: dict[str, dict[str, tuple[float, float]]] = {  # of settings, lowest and highest
    "steps": {"wanted": (1, 1e6)},
    "random": {"chance": (0, 1)},
    "overlong": {"cache_tokens": (0, 1e7)},
    "repetition": {"ngram_tokens": (1, 1e6), "max_penalty": (-1e6, 0)},
}


def correctness(
    completions: list,
    grades: list[Grade],
    log_metric: Callable | None = None,
    *,
    correct: float = 1.0,
    wrong: float = 0.0,
    no_answer: float | None = None,
    **_: object,
) -> list[float | None]:
    """`correct` for the right answer, `wrong` for another, `no_answer` (default: as `wrong`) where there is none.

    Only an answer in the template's answer style counts; one that took too long to compare is wrong. None where the
    solution itself cannot be read. Logs `accuracy`, the share of right ones among the readable, and of all completions
    the shares `grading/no_answer`, `grading/timeouts`, `grading/crashed` and `grading/unparsable_gold`, all in [0, 1].
    """
    log_grades(grades, log_metric)
    worth = {True: correct, False: wrong, None: None}
    absent = wrong if no_answer is None else no_answer
    return [absent if grade.how == "no_answer" else worth[grade.correct] for grade in grades]


def log_grades(grades: list[Grade], log_metric: Callable | None) -> None:
    if not log_metric:
        return
    if known := [grade.correct for grade in grades if grade.correct is not None]:
        log_metric("accuracy", sum(known) / len(known))
    for name, how in {"no_answer": "no_answer", **FAILED, "unparsable_gold": "unparsable_gold"}.items():
        log_metric(f"grading/{name}", sum(grade.how == how for grade in grades) / len(grades))


def format(completions: list, template: PromptTemplate, **_: object) -> list[float]:
    """1 where the whole completion is in the template's answer style, else 0; right or wrong does not matter."""
    texts = [template.full_text(completion_text(completion)) for completion in completions]
    return [float(well_formed(text, template.answer_style)) for text in texts]


def r1_zero(
    completions: list, grades: list[Grade], template: PromptTemplate, log_metric: Callable | None = None, **_: object
) -> list[float | None]:
    """1 where the completion is in the answer style and its answer is right, else 0: format and answer in one verdict.

    The rule reward of R1-Zero studies (Liu et al. 2025, arXiv:2503.20783). Logs what `correctness` logs, and
    `format_accuracy`, the share in the answer style, in [0, 1].
    """
    log_grades(grades, log_metric)
    formed = format(completions, template)
    if log_metric:
        log_metric("format_accuracy", sum(formed) / len(formed))
    return [
        None if grade.correct is None else float(grade.correct and formed_)
        for grade, formed_ in zip(grades, formed, strict=True)
    ]


def brevity(completion_ids: list[list[int]], max_completion_length: int, **_: object) -> list[float]:
    """(1 + cos(pi * length / max_completion_length)) / 2: 1 for no token, 0 at the limit, in [0, 1].

    Alone it rewards empty completions: give it `gate: correctness`.
    """
    return [cosine_between(1.0, 0.0, len(ids), max_completion_length) for ids in completion_ids]


def cosine(
    completion_ids: list[list[int]],
    grades: list[Grade],
    max_completion_length: int,
    *,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    **_: object,
) -> list[float | None]:
    """Correctness scaled by length: from `..._short` for no token along a half cosine to `..._long` at the limit.

    Short right answers are worth more, short wrong ones less (Yeo et al. 2025, arXiv:2502.03373, appendix C.1). None
    where the solution cannot be read. TRL's `get_cosine_scaled_reward` is the same curve over TRL's own grader.
    """
    ends = {True: (correct_short, correct_long), False: (wrong_short, wrong_long)}
    return [
        None if grade.correct is None else cosine_between(*ends[grade.correct], len(ids), max_completion_length)
        for ids, grade in zip(completion_ids, grades, strict=True)
    ]


def cosine_between(start: float, end: float, length: int, longest: int) -> float:
    """From `start` at length 0 to `end` at `longest` and beyond, along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(length / longest, 1))) / 2


def overlong(
    completion_ids: list[list[int]], max_completion_length: int, *, cache_tokens: int = 128, **_: object
) -> list[float]:
    """0 up to max_completion_length - cache_tokens, then falling to -1 at max_completion_length, in [-1, 0].

    The soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13), by TRL.
    """
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(max_completion_length, cache_tokens)(completion_ids)


def repetition(
    completion_ids: list[list[int]], *, ngram_tokens: int = 3, max_penalty: float = -1.0, **_: object
) -> list[float]:
    """max_penalty * (1 - distinct n-grams / n-grams), over tokens, in [max_penalty, 0]; 0 for texts below one n-gram.

    Yeo et al. 2025 (arXiv:2502.03373, appendix C.2), by TRL.
    """
    from trl.rewards import get_repetition_penalty_reward

    return get_repetition_penalty_reward(ngram_tokens, max_penalty)(completion_ids)


def steps(completions: list, *, wanted: int = 3, **_: object) -> list[float]:
    """min(1, distinct steps / wanted), in [0, 1]; a step is a line with an equation, a number, a dash or "Step n"."""
    found = [set(filter(STEP.match, completion_text(completion).splitlines())) for completion in completions]
    return [min(1.0, len(lines) / wanted) for lines in found]


def language(completions: list, **_: object) -> list[float]:
    """The share of the letters that are Latin, Greek or mathematical, in [0, 1]; 0 for a text without letters.

    Against the mixing of languages that R1-Zero showed (DeepSeek-AI 2025, arXiv:2501.12948, section 2.3.2).
    """
    scores = []
    for text in map(completion_text, completions):
        letters = sum(map(str.isalpha, text))
        foreign = sum(map(str.isalpha, "".join(FOREIGN.findall(text))))  # the pattern takes subscripts for letters
        scores.append(1 - foreign / letters if letters else 0.0)
    return scores


def random(completions: list, *, chance: float = 0.5, **_: object) -> list[float]:
    """1 with the probability `chance`, else 0, whatever the completion says: a control.

    What a training with it gains comes from the training, not from the reward (Shao et al. 2025, arXiv:2506.10947,
    section 2). Drawn from Python's generator, which the run's `seed` sets and a checkpoint keeps.
    """
    return [float(generator.random() < chance) for _ in completions]


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


SHIPPED = (correctness, format, r1_zero, brevity, cosine, overlong, repetition, steps, language, random, heuristic)
REWARDS = {function.__name__: function for function in SHIPPED}
