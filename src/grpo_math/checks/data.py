"""Checks of the data: rows, duplicates, lengths; every gold through the grader; overlap with the test sets."""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data import TEST_PROBLEM, TEST_WORDS, Overlap, Problem, Problems, test_sets
from grpo_math.data.functions import parameters
from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import problems_show, wilson_interval
from grpo_math.grading import accepted, equal_all, grade_batch
from grpo_math.rewards import Reward

PAIRS = 1_000  # of golds of different problems
SOLVED = ("####", "\\boxed")  # in no final answer
WORDY = 12  # words in an answer, at most
NUMBER = re.compile(r"[-+$\s]*\d[\d.,]*(\s*/\s*\d+)?[\s%]*")
FORMULA = re.compile(r"\d|\\(?!text|mathrm)")  # in golds that are more than words
ASKED = ("of other ", "whose ", "with a pass rate ", TEST_PROBLEM, TEST_WORDS)  # reasons that the recipe names itself
NEARLY_ALL = 0.9  # of the golds of a part
FEW = 0.01  # share of unusable golds above which a dataset is broken

Row = tuple[int, str]  # its number in the source, from 1, and its gold


def listed(rows: list[Row]) -> str:
    return ", ".join(f"{place} ({' '.join(answer.split()):.40})" for place, answer in rows[:3])


def rows_of(part: Problems) -> Iterator[tuple[int, Problem]]:
    return zip(part.places, part.problems, strict=True)


def rows(subject: Subject) -> Iterator[Finding]:
    """Rows kept and dropped, duplicates, lengths."""
    for part in subject.parts:
        unasked = sum(count for reason, count in part.dropped.items() if not reason.startswith(ASKED))
        much = unasked > part.rows / 10
        yield warning(str(part), "change what drops them, or ignore this if intended") if much else note(str(part))
        yield from duplicates(part)
    lengths = subject.lengths
    shares = ", ".join(f"{share:.0%} up to {lengths[int((len(lengths) - 1) * share)]}" for share in (0.5, 0.9, 0.99))
    yield note(f"prompts: {shares}, the longest {lengths[-1]} tokens")
    if left_out := subject.columns[1]:
        yield warning(left_out, "convert each column to one type, or ignore this if no reward reads it")


def power(subject: Subject) -> Iterator[Finding]:
    """The difference that the held-out problems can show."""
    if subject.recipe.eval.wanted and subject.recipe.eval.samples == 1:
        for one in subject.benchmarks:
            yield note(f"{one.title}: {problems_show(len(one.problems))}")


def reachable(subject: Subject) -> Iterator[Finding]:
    """Whether the held-out problems are enough for `eval.stop_at`: n right ones have a lower end of n / (n + z^2)."""
    wanted = subject.recipe.eval.stop_at
    if wanted is None:
        return
    problems = sum(len(one.problems) for one in subject.benchmarks)
    most, _ = wilson_interval(problems, problems)
    if most < wanted:
        needed = math.ceil(wanted / (1 - wanted) * problems * (1 - most) / most)
        yield error(
            f"eval.stop_at: {wanted:g} cannot be reached: with all {problems:,} problems right, the lower end of "
            f"the accuracy interval is {most:.3f}",
            f"lower it, or evaluate on at least {needed:,} problems",
        )


def duplicates(part: Problems) -> Iterator[Finding]:
    found: dict[str, list[Row]] = defaultdict(list)
    for place, problem in rows_of(part):
        found[" ".join(problem.question.split())].append((place, problem.answer))
    again = [same for same in found.values() if len(same) > 1]
    pairs = {pair: same for same in again for pair in {(same[0][1], other) for _, other in same[1:]}}
    tried = [(pair, two) for pair in pairs for two in itertools.product(accepted(pair[0]), accepted(pair[1]))]
    verdicts = zip(tried, equal_all([two for _, two in tried]), strict=True)
    agreed = {pair for (pair, _), (correct, _) in verdicts if correct is not False}
    if different := [same for pair, same in pairs.items() if pair not in agreed]:
        few = len(different) < len(part.problems) / 20
        yield error(
            f"{part.title}: {len(different)} questions have several answers, such as rows {listed(different[0])}",
            "delete the wrong ones" if few else "name the question's column, dataset: {fields: {question: COLUMN}}",
        )
    if again:
        count = sum(len(same) - 1 for same in again)
        says = f"{part.title}: {count} of {len(part.problems):,} repeat a question, such as rows {listed(again[0])}"
        yield warning(says, "delete them, or they count twice") if count > FEW * len(part.problems) else note(says)


def golds(subject: Subject) -> Iterator[Finding]:
    """Every gold as a perfect completion must be right, and as the answer to another problem wrong."""
    functions = [reward.function for reward in subject.rewards if isinstance(reward, Reward)]
    graded = subject.recipe.eval.wanted or any("grades" in parameters(function) for function in functions)
    for part in subject.parts:
        wrong = graded_as(subject, part.problems, worked=False, verdicts=(False, None))
        if wrong:
            many = graded and len(wrong) > FEW * len(part.problems)
            places = [(part.places[index], part.problems[index].answer) for index in wrong]
            yield (error if many else warning)(
                f"{part.title}: {len(wrong):,} of {len(part.problems):,} golds cannot be graded as right by any "
                f"completion: rows {listed(places)}",
                "use a column with only the final answer (dataset.fields), or delete these rows",
            )
        else:
            yield note(f"{part.title}: all {len(part.problems):,} golds are graded as right")
        yield from whole_solutions(part, graded)
        yield from text_among_numbers(part)
    yield from crossed(subject.problems)
    if subject.recipe.sft and subject.recipe.sft.worked:
        yield from taught(subject)


def graded_as(subject: Subject, problems: list[Problem], worked: bool, verdicts: tuple) -> list[int]:
    """The indices of the problems whose own solution, as a completion, gets one of these verdicts."""
    template = subject.recipe.template
    texts = [template.full_text(template.target(problem, worked=worked)) for problem in problems]
    grades = grade_batch(texts, [problem.answer for problem in problems], template.answer_style)
    return [index for index, grade in enumerate(grades) if grade.correct in verdicts]


def whole_solutions(part: Problems, graded: bool) -> Iterator[Finding]:
    """Golds that are worked solutions: they equal themselves, and nothing that a model will answer."""
    long = [
        (place, problem.answer)
        for place, problem in rows_of(part)
        if any(sign in problem.answer for sign in SOLVED) or sum(map(str.isalpha, problem.answer.split())) > WORDY
    ]
    if long:
        yield (error if graded and len(long) > FEW * len(part.problems) else warning)(
            f"{part.title}: {len(long):,} of {len(part.problems):,} golds are solutions, not answers: rows "
            f"{listed(long)}",
            "dataset: {name: gsm8k or math} extracts the answer from them, or name a column with only the answer",
        )


def text_among_numbers(part: Problems) -> Iterator[Finding]:
    """Golds without a digit, such as "see figure" or "none", where nearly all golds are numbers: an empty cell of the
    source by another name, which a policy learns to say."""
    numbers = sum(any(map(NUMBER.fullmatch, accepted(problem.answer))) for problem in part.problems)
    texts = [
        (place, problem.answer)
        for place, problem in rows_of(part)
        if not any(map(FORMULA.search, accepted(problem.answer)))
    ]
    if texts and numbers >= NEARLY_ALL * len(part.problems):
        yield warning(
            f"{part.title}: {len(texts):,} of {len(part.problems):,} golds are text and {numbers:,} numbers: rows "
            f"{listed(texts)}",
            "delete these rows, or ignore this if they are answers",
        )


def crossed(problems: list[Problem]) -> Iterator[Finding]:
    """Golds of different problems that are written differently should be different."""
    chance = random.Random(0)
    drawn = [chance.sample(problems, 2) for _ in range(PAIRS if len(problems) > 1 else 0)]
    pairs = [(one.answer, other.answer) for one, other in drawn if one.answer != other.answer]
    equal = [pair for pair, (correct, _) in zip(pairs, equal_all(pairs), strict=True) if correct]
    shown = f", such as {equal[0][0]!r} and {equal[0][1]!r}" if equal else ""
    says = f"{len(equal)} of {len(pairs):,} pairs of different golds count as equal{shown}"
    yield warning(says, "check whether they are") if len(equal) > FEW * len(pairs) else note(says)


def taught(subject: Subject) -> Iterator[Finding]:
    """The worked solutions of an SFT must be right, as the grader reads them."""
    for part in subject.parts:
        worked = [problem for problem in part.problems if problem.worked]
        if wrong := graded_as(subject, worked, worked=True, verdicts=(False,)):
            yield warning(
                f"{part.title}: {len(wrong):,} of {len(worked):,} worked solutions give another answer than the "
                f"gold, such as {worked[wrong[0]].answer!r}",
                "sft: {target: answer}, or correct them",
            )


def contamination(subject: Subject) -> Iterator[Finding]:
    """Training problems that are in the test sets: counted here, dropped by `decontaminate`."""
    recipe, problems = subject.recipe, subject.problems
    try:
        tests, missing = test_sets(recipe.datasets, recipe.eval_datasets, None)
    except UserError:
        if recipe.eval.datasets or recipe.eval.wanted:
            raise
        tests, missing = test_sets(recipe.datasets, [], None)  # the training data have no test split
    if missing:
        yield note(
            f"not compared with the test sets of {', '.join(missing)}: neither named in eval: {{datasets: ...}} nor in "
            "the dataset's folder or the Hub's cache"
        )
    for test in tests:
        overlap = Overlap(test.problems)
        reasons = overlap(problems)
        same, near = reasons.count(TEST_PROBLEM), reasons.count(TEST_WORDS)
        says = f"{test.title}: of {len(reasons):,} training problems {same:,} are test problems, {near:,} more "
        says += TEST_WORDS
        says += ", as templated ones do" if near > len(reasons) / 10 else ""
        yield warning(says, "dataset: {decontaminate: true} drops them") if same else note(says)
