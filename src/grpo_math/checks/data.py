"""Preflight of the data: rows, duplicates, lengths; every gold through the grader; overlap with the test sets."""

import random
from collections import defaultdict
from collections.abc import Iterator

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data.contamination import RUN, SAME, Overlap, test_sets
from grpo_math.data.functions import parameters
from grpo_math.data.problems import Problem, Problems
from grpo_math.grading import grade_batch
from grpo_math.grading.equal import equal_all
from grpo_math.rewards.reward import Reward

PAIRS = 1_000  # of golds that belong to different problems
SOLVED = ("####", "\\boxed")  # what no answer holds
WORDY = 12  # words of an answer, at most
FEW = 0.01  # share of unusable golds from which a dataset is broken


def rows(subject: Subject) -> Iterator[Finding]:
    """Kept and dropped, duplicates, lengths."""
    for part in subject.parts:
        much = part.rows - len(part.problems) > part.rows / 10
        fix = "change what drops them, or leave it, if that is meant"
        yield warning(str(part), fix) if much else note(str(part))
        yield from duplicates(part)
    yield lengths(subject)


def duplicates(part: Problems) -> Iterator[Finding]:
    found = defaultdict(list)
    for problem, place in zip(part.problems, part.places, strict=True):
        found[" ".join(problem.question.split())].append((place, problem.answer))
    again = [same for same in found.values() if len(same) > 1]
    pairs = {answer: same for same in again for answer in {(same[0][1], other) for _, other in same[1:]}}
    different = [
        pairs[pair] for pair, (correct, _) in zip(pairs, equal_all(list(pairs)), strict=True) if correct is False
    ]
    if different:
        yield error(
            f"{part.title}: {len(different)} questions have several answers, such as rows {listed(different[0])}",
            "delete the wrong ones"
            if len(different) < len(part.problems) / 20
            else "name the question's own column, dataset: {fields: {question: COLUMN}}",
        )
    if again:
        count = sum(len(same) - 1 for same in again)
        says = f"{part.title}: {count} of {len(part.problems):,} repeat a question, such as rows {listed(again[0])}"
        yield warning(says, "delete them, or they count twice") if count > FEW * len(part.problems) else note(says)


def listed(same: list[tuple[int, str]]) -> str:
    return ", ".join(f"{place} ({answer:.40})" for place, answer in same[:3])


def lengths(subject: Subject) -> Finding:
    found = subject.lengths
    at = {share: found[min(len(found) - 1, int(len(found) * share))] for share in (0.5, 0.9, 0.99)}
    shares = ", ".join(f"{share:.0%} up to {length}" for share, length in at.items())
    return note(f"prompts: {shares}, the longest {found[-1]} tokens")


def golds(subject: Subject) -> Iterator[Finding]:
    """Every gold as a perfect completion must be right, and as the answer to another problem wrong."""
    template, style = subject.recipe.template, subject.recipe.template.answer_style
    graded = uses_grader(subject)
    for part in subject.parts:
        perfect = [template.full_text(template.target(problem, worked=False)) for problem in part.problems]
        grades = grade_batch(perfect, [problem.answer for problem in part.problems], style)
        wrong = [
            (place, problem.answer)
            for problem, place, grade in zip(part.problems, part.places, grades, strict=True)
            if not grade.correct
        ]
        if not wrong:
            yield note(f"{part.title}: all {len(grades):,} golds are right as completions")
        else:
            many = len(wrong) > FEW * len(grades) and graded
            yield (error if many else warning)(
                f"{part.title}: {len(wrong):,} of {len(grades):,} golds cannot be right, no completion earns anything "
                f"for them: rows {', '.join(f'{place} ({answer:.40})' for place, answer in wrong[:5])}",
                "give the final answer alone in that column (dataset.fields), or delete these rows",
            )
        yield from whole_solutions(part, graded)
    yield from crossed(subject.problems)
    if subject.recipe.sft and subject.recipe.sft.worked:
        yield from taught(subject)


def whole_solutions(part: Problems, graded: bool) -> Iterator[Finding]:
    """A gold that is a worked solution equals itself, and nothing a model will answer."""
    long = [
        (place, problem.answer)
        for problem, place in zip(part.problems, part.places, strict=True)
        if any(sign in problem.answer for sign in SOLVED) or sum(map(str.isalpha, problem.answer.split())) > WORDY
    ]
    if long:
        shown = ", ".join(f"{place} ({' '.join(answer.split()):.40})" for place, answer in long[:3])
        yield (error if graded and len(long) > FEW * len(part.problems) else warning)(
            f"{part.title}: {len(long):,} of {len(part.problems):,} golds are solutions, not answers: rows {shown}",
            "dataset: {name: gsm8k or math} takes the answer out of them, or name a column that holds it alone",
        )


def uses_grader(subject: Subject) -> bool:
    """Whether anything is graded: by a shipped reward, by an own one that wants the verdicts, or in an evaluation."""
    functions = [reward.function for reward in subject.rewards if isinstance(reward, Reward)]
    return subject.recipe.eval.wanted or any("grades" in parameters(function) for function in functions)


def crossed(problems: list[Problem]) -> Iterator[Finding]:
    """Golds of different problems that are written differently should be different."""
    chance = random.Random(0)
    drawn = [chance.sample(problems, 2) for _ in range(PAIRS if len(problems) > 1 else 0)]
    pairs = [(one.answer, other.answer) for one, other in drawn if one.answer != other.answer]
    equal = [pair for pair, (correct, _) in zip(pairs, equal_all(pairs), strict=True) if correct]
    shown = ", such as " + " and ".join(repr(answer) for answer in equal[0]) if equal else ""
    says = f"{len(equal)} of {len(pairs):,} pairs of different golds count as equal{shown}"
    yield warning(says, "look whether they are") if len(equal) > FEW * len(pairs) else note(says)


def taught(subject: Subject) -> Iterator[Finding]:
    """The worked solutions themselves must be right, as the grader reads them."""
    template = subject.recipe.template
    for part in subject.parts:
        worked = [problem for problem in part.problems if problem.worked]
        texts = [template.full_text(template.target(problem, worked=True)) for problem in worked]
        grades = grade_batch(texts, [problem.answer for problem in worked], template.answer_style)
        wrong = [problem for problem, grade in zip(worked, grades, strict=True) if grade.correct is False]
        if wrong:
            yield warning(
                f"{part.title}: {len(wrong):,} of {len(worked):,} worked solutions give another answer than the "
                f"gold, such as {wrong[0].answer!r}",
                "sft: {target: answer}, or mend them",
            )


def contamination(subject: Subject) -> Iterator[Finding]:
    """Training problems that stand in the test sets: counted here, dropped by `decontaminate`."""
    tests = test_sets(subject.recipe)
    if not tests:
        yield note(
            "no test set to compare with: eval names none, and GSM8K's and MATH-500's are neither in the dataset's "
            "folder nor in the Hub's cache (eval: {datasets: {name: gsm8k, path: FOLDER}} names one)"
        )
    for test in tests:
        overlap = Overlap(test.problems)
        reasons = [overlap.reason(problem) for problem in subject.problems]
        same, near = reasons.count(SAME), reasons.count(RUN)
        says = f"{test.title}: of {len(reasons):,} training problems {same:,} {SAME[5:]}, {near:,} more {RUN}"
        says += ", as templated ones do" if near > len(reasons) / 10 else ""
        asked = all(spec.decontaminate for spec in subject.recipe.datasets)
        yield warning(says, "dataset: {decontaminate: true} drops them") if same and not asked else note(says)
