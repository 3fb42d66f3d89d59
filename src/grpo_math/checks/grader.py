"""Checks of the grader and of own rewards: no answer without content may be right for two different golds.

A policy finds such answers, so about a hundred are tried here."""

import math
from collections.abc import Iterator
from itertools import chain

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.checks.rewards import EQUAL, failure, mean_score
from grpo_math.data import Problem, to_rows
from grpo_math.data.functions import parameters
from grpo_math.errors import RewardError
from grpo_math.grading import equal_all, grade_batch
from grpo_math.rewards import Reward, call_arguments

GOLDS = 100  # different ones for the grader
PROBLEMS = 3  # for an own reward
PARTS = ("", "{,}", ";", r"\land", r"\text{}", "0")
FORMS = (
    "%s", "{%s}", "(%s)", "{{%s}}", r"\{%s\}", "(%s,%s)", "[%s,%s)", "%s,%s", r"%s\lor %s", r"%s\cup %s", "%s=%s",
    "x=%s", r"%s\&%s", r"%s\approx %s", "%s:%s", r"\frac{%s}{%s}", r"\sqrt{%s}", "%s^{%s}", r"\pm %s", r"%s\%", "and%s",
    r"\begin{pmatrix}%s\end{pmatrix}", r"\begin{array}{c}%s\\%s\end{array}",
)  # fmt: skip
EMPTY_ANSWERS = tuple(dict.fromkeys(form.replace("%s", part) for part in PARTS for form in FORMS))


def grader(subject: Subject) -> Iterator[Finding]:
    """The grader on the recipe's golds: an answer that is right for two different golds is an error, so is a crash."""
    template, problems = subject.recipe.template, different(subject.problems, GOLDS)
    golds, crashed, paid = [problem.answer for problem in problems], [], {}
    for answer in EMPTY_ANSWERS:
        text = template.full_text(template.target(Problem("", answer), worked=False))
        grades = grade_batch([text] * len(golds), golds, template.answer_style)
        if any(grade.how == "crashed" for grade in grades):
            crashed.append(answer)
        paid[answer] = [gold for gold, grade in zip(golds, grades, strict=True) if grade.correct]
    yield from exploits("the grader", paid, "please report it, a policy will exploit them")
    if crashed:
        says = f"the grader fails on {len(crashed)} answers without content, such as {crashed[0]!r}"
        yield error(says, "please report it")
    yield note(f"{len(EMPTY_ANSWERS)} answers without content tried on {len(golds)} golds")


def own_rewards(subject: Subject) -> Iterator[Finding]:
    """Own rewards that tell golds apart: to score such an answer as high as the right one is an error."""
    recipe, problems = subject.recipe, different(subject.problems, PROBLEMS)
    pairs = zip(recipe.rewards, subject.rewards, strict=True)
    own = [(spec, one) for spec, one in pairs if spec.path and isinstance(one, Reward)]
    if recipe.sft or len(problems) < 2 or not own:
        return
    golds = [problem.answer for problem in problems]
    group = recipe.num_generations
    size = math.ceil((2 + len(EMPTY_ANSWERS)) / group) * group  # whole groups, for rewards that count
    texts = []  # for each problem: its gold, another gold, the empty answers
    for gold, other in zip(golds, golds[1:] + golds[:1], strict=True):
        answers = [gold, other, *EMPTY_ANSWERS, *EMPTY_ANSWERS[-1:] * group][:size]
        texts.append([recipe.template.target(Problem("", answer), worked=False) for answer in answers])
    rows = to_rows(problems, recipe.template, subject.tokenizer, subject.columns[0])
    for spec, reward in own:
        try:
            for place in (0, 2):
                mean_score(reward, [some[place] for some in texts], rows, subject)
        except RewardError:
            continue  # `audit` reports what fails on right answers and on an empty one
        try:
            each = [row for row in rows for _ in range(size)]
            given = reward(**call_arguments(list(chain(*texts)), each, subject.tokenizer, subject.state))
        except RewardError as mistake:
            yield failure(mistake, " (seen with answers without content)", recipe)
            continue
        scores = [score or 0.0 for score in given]
        found = [scores[place : place + size] for place in range(0, len(scores), size)]
        told = [right > wrong + EQUAL for right, wrong, *_ in found]  # each gold from the other
        if all(told):
            paid = {
                answer: [gold for gold, some in zip(golds, found, strict=True) if some[place] > some[0] - EQUAL]
                for place, answer in enumerate(EMPTY_ANSWERS, 2)
            }
            fix = "score them 0, a policy will exploit them: an empty list must not count as all right"
            yield from exploits(f"rewards.{spec.name}", paid, fix)
        elif "solution" in parameters(reward.function) and not any(told):
            yield warning(
                f"rewards.{spec.name}: takes the solution, but scores a wrong answer as high as the right one",
                "compare the answer with the solution, or drop the parameter",
            )


def different(problems: list[Problem], most: int) -> list[Problem]:
    """Problems from all over the data, each gold once."""
    golds = list({problem.answer: problem for problem in problems}.values())
    return golds[:: max(1, len(golds) // most)][:most]


def exploits(what: str, paid: dict[str, list[str]], fix: str) -> Iterator[Finding]:
    """An error where `paid` has answers that are right for different golds; it holds the golds of each answer."""
    wrong = {
        answer: golds
        for answer, golds in paid.items()
        if not all(correct for correct, _ in equal_all([(golds[0], gold) for gold in golds[1:]]))
    }
    for answer, golds in list(wrong.items())[:1]:
        shown = " and ".join(map(repr, golds[:2]))
        yield error(
            f"{what}: {len(wrong)} of {len(paid)} answers without content are right, such as {answer!r} for {shown}",
            fix,
        )
