"""Preflight of the grader and of people's own rewards: no answer without content may be right for two different golds.

A policy will try such answers, so about a hundred are tried here."""

from collections.abc import Iterator
from itertools import chain

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.checks.rewards import EQUAL, mean_score, scores_of
from grpo_math.data.functions import parameters
from grpo_math.data.problems import Problem
from grpo_math.data.prompts import meta_columns, to_rows
from grpo_math.errors import RewardError
from grpo_math.grading import grade_batch
from grpo_math.grading.equal import equal_all

GOLDS = 100  # different ones that the grader is asked about
PROBLEMS = 3  # that a person's own reward is asked about
PARTS = ("", "{,}", ";", r"\land", r"\text{}", "0")
FORMS = (
    "%s", "{%s}", "(%s)", "{{%s}}", r"\{%s\}", "(%s,%s)", "[%s,%s)", "%s,%s", r"%s\lor %s", r"%s\cup %s", "%s=%s",
    "x=%s", r"%s\&%s", r"%s\approx %s", "%s:%s", r"\frac{%s}{%s}", r"\sqrt{%s}", "%s^{%s}", r"\pm %s", r"%s\%", "and%s",
    r"\begin{pmatrix}%s\end{pmatrix}", r"\begin{array}{c}%s\\%s\end{array}",
)  # fmt: skip
EMPTY_ANSWERS = tuple(dict.fromkeys(form.replace("%s", part) for part in PARTS for form in FORMS))


def grader(subject: Subject) -> Iterator[Finding]:
    """The grader on the recipe's golds. An answer that is right for two different golds is an error, and so is a
    crash."""
    template, golds = subject.recipe.template, different(subject.problems, GOLDS)
    failed, paid = [], {}
    for answer in EMPTY_ANSWERS:
        text = template.full_text(template.target(Problem("", answer), worked=False))
        grades = grade_batch([text] * len(golds), [problem.answer for problem in golds], template.answer_style)
        if any(grade.how == "crashed" for grade in grades):
            failed.append(answer)
        paid[answer] = [problem for problem, grade in zip(golds, grades, strict=True) if grade.correct]
    yield from findings("the grader", paid, failed)
    yield note(f"{len(EMPTY_ANSWERS)} answers without content tried on {len(golds)} golds")


def own_rewards(subject: Subject) -> Iterator[Finding]:
    """Own rewards that tell golds apart, on the same answers: to pay for them as for the right answer is an error."""
    template, problems = subject.recipe.template, different(subject.problems, PROBLEMS)
    own = [one for one in zip(subject.recipe.rewards, subject.rewards, strict=True) if one[0].path]
    if subject.recipe.sft or len(problems) < 2 or not own:
        return
    group = subject.recipe.trainer.get("num_generations", 8)
    asked = []  # for each problem its gold, another one, and the answers; whole groups, for rewards that count
    for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
        answers = [problem.answer, other.answer, *EMPTY_ANSWERS]
        asked.append(answers + answers[-1:] * (-len(answers) % group))
    texts = [[template.target(Problem("", answer), worked=False) for answer in answers] for answers in asked]
    rows = to_rows(problems, template, subject.tokenizer, meta_columns(subject.problems))
    for spec, reward in own:
        try:
            mean_score(reward, [some[0] for some in texts], rows, subject)
        except RewardError:
            continue  # `audit` reports what fails on right answers
        try:
            every = [row for row, some in zip(rows, texts, strict=True) for _ in some]
            scores = [score or 0.0 for score in scores_of(reward, list(chain.from_iterable(texts)), every, subject)]
        except RewardError as mistake:
            yield error(f"{mistake} (seen with answers without content)")
            continue
        size = len(texts[0])
        found = [scores[place : place + size] for place in range(0, len(scores), size)]
        if all(right > wrong + EQUAL for right, wrong, *_ in found):  # each gold from the next one
            paid = {
                answer: [
                    problem for problem, some in zip(problems, found, strict=True) if some[place] >= some[0] - EQUAL
                ]
                for place, answer in enumerate(EMPTY_ANSWERS, 2)
            }
            yield from findings(f"rewards.{spec.name}", paid, [])
        elif "solution" in parameters(reward.function) and not any(right > wrong + EQUAL for right, wrong, *_ in found):
            yield warning(
                f"rewards.{spec.name}: takes the solution, and gives a wrong answer as much as the right one",
                "compare the answer with the solution, or drop the parameter",
            )


def different(problems: list[Problem], most: int) -> list[Problem]:
    """Problems from all over the data, each gold once."""
    golds = list({problem.answer: problem for problem in problems}.values())
    return golds[:: max(1, len(golds) // most)][:most]


def findings(what: str, paid: dict[str, list[Problem]], failed: list[str]) -> Iterator[Finding]:
    """Errors for answers that are right for problems with different golds, and for those that make the grader fail."""
    wrong = {}
    for answer, problems in paid.items():
        pairs = [(problems[0].answer, problem.answer) for problem in problems[1:]]
        if not all(correct for correct, _ in equal_all(pairs)):
            wrong[answer] = problems
    if wrong:
        answer, problems = next(iter(wrong.items()))
        golds = " and ".join(repr(problem.answer) for problem in problems[:2])
        yield error(
            f"{what}: {len(wrong)} of {len(paid)} answers without content are right, such as {answer!r} for {golds}",
            "refuse them, a policy will exploit them: a list of nothing must not count as all right"
            if what.startswith("rewards.")
            else "please report it, a policy will exploit them",
        )
    if failed:
        yield error(f"{what} fails on {len(failed)} answers without content, such as {failed[0]!r}", "please report it")
