"""Checks of the rewards: what each gives to completions that are right, wrong, empty, cut off, or nonsense."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data import Problem, meta_columns, to_rows
from grpo_math.data.functions import parameters
from grpo_math.errors import RewardError
from grpo_math.evaluation import Scoring, grade_rows
from grpo_math.evaluation.solve import rows_of
from grpo_math.generation import Completion
from grpo_math.grading import accepted
from grpo_math.recipe.recipe import Recipe
from grpo_math.rewards import REWARDS, Reward, RewardSpec, call_arguments

EQUAL = 1e-9  # scores closer than this are the same
MUCH = 0.1  # of what being right is worth
PROBLEMS = 4  # tried; scores are means over them
ADD_CORRECTNESS = "rewards: {correctness: {weight: 1.0}} would tell them apart"
GOLD_NAMES = ("answer", "gold", "label", "target", "ground_truth")  # elsewhere


def audit(subject: Subject) -> Iterator[Finding]:
    """Columns that the rewards take and the data lacks; then the table of scores, and what it shows."""
    recipe = subject.recipe
    if recipe.sft:
        yield note("SFT has no rewards")
        return
    pairs = [(spec, one) for spec, one in zip(recipe.rewards, subject.rewards, strict=True) if isinstance(one, Reward)]
    learned = [spec.name for spec in recipe.rewards if spec.reward_model]
    if learned:
        yield note(f"{', '.join(learned)}: a reward model, not tried here")
    problems = subject.problems[:: max(1, len(subject.problems) // PROBLEMS)][:PROBLEMS]  # of every dataset
    rows = to_rows(problems, recipe.template, subject.tokenizer, subject.columns[0])
    if recipe.environment:
        acting = [spec.name for spec, one in pairs if "environments" in parameters(one.function)]
        pairs = [(spec, one) for spec, one in pairs if spec.name not in acting]
        if acting:
            yield note(f"{', '.join(acting)}: reads the environments of completions, not tried here")
    if any(one.function is REWARDS["random"] for _, one in pairs):
        pairs = [(spec, one) for spec, one in pairs if one.function is not REWARDS["random"]]
        yield note("random: a control, which reads no completion: not tried here")
    missing = list(missing_columns(pairs, rows[0].keys() | meta_columns(subject.problems)))
    yield from missing
    if missing or not pairs:
        return
    tried, scores = completions(problems, subject), defaultdict(list)
    for _, reward in pairs:
        try:
            for kind, texts in tried.items():
                least = recipe.max_completion_length if kind == "nonsense" else 0
                scores[kind].append(mean_score(reward, texts, rows, subject, least))
        except RewardError as mistake:
            yield failure(mistake, "" if kind == "perfect" else f" (seen with {kind} completions)", recipe)
    if any(len(scores[kind]) < len(pairs) for kind in tried):
        return
    weights = {spec.name: spec.weight for spec, _ in pairs}
    totals = {kind: sum(w * s for w, s in zip(weights.values(), found, strict=True)) for kind, found in scores.items()}
    columns = [f"  {name:>5}" for name in [*weights, "reward"]]
    lines = [f"{'mean score of':16}" + "".join(columns)]
    for kind, found in scores.items():
        cells = zip([*found, totals[kind]], columns, strict=True)
        lines.append(f"{kind:16}" + "".join(f"{score:>{len(column)}.3g}" for score, column in cells))
    yield note("\n".join(lines))
    each = dict(zip(weights, zip(*scores.values(), strict=True), strict=True))
    # An own reward that tells none of them apart may read another form than the template's
    unread = any(spec.path and same(each[spec.name]) for spec, _ in pairs)
    if not learned and not unread and same(totals.values()):
        yield error(
            f"rewards: a perfect, a wrong, an empty and every other completion score {totals['perfect']:.3g}: there is "
            "nothing to learn from",
            ADD_CORRECTNESS,
        )
        return
    for name, given in each.items():
        if same(given):
            yield warning(
                f"rewards.{name}: scores {given[0]:g} for a perfect, a wrong, an empty and every other completion: it "
                "has no effect",
                f"rewards: {{{name}: false}}, or check what it reads",
            )
    if not learned:
        judged = any(spec.path or "grades" in parameters(one.function) for spec, one in pairs)
        for one in misled(totals, weights, scores, judged):
            yield replace(one, level="warning") if unread else one


def failure(mistake: RewardError, where: str, recipe: Recipe) -> Finding:
    """A reward that fails stops a training, unless the recipe skips the completions that it fails on."""
    return (error if recipe.on_reward_error == "stop" else warning)(f"{mistake}{where}")


def same(scores: Collection[float]) -> bool:
    return max(scores) - min(scores) <= EQUAL


def held_out(subject: Subject) -> Iterator[Finding]:
    """Rewards that the training's evaluations leave out, or that fail on held-out problems."""
    recipe, template = subject.recipe, subject.recipe.template
    if not (recipe.rewards and recipe.eval.wanted and recipe.eval.rewards):
        return
    scoring = Scoring(recipe, subject.benchmarks, subject.tokenizer, in_training=True, rewards=subject.rewards)
    yield from map(note, scoring.left_out())
    for benchmark in subject.benchmarks:
        rows = []
        for place, problem in enumerate(benchmark.problems[:PROBLEMS]):
            text = template.target(problem, worked=True)
            perfect = Completion(text, 1 + len(subject.tokenizer(text, add_special_tokens=False)["input_ids"]), False)
            rows += rows_of(benchmark, place, [perfect] * recipe.eval.samples)
        try:
            scoring(grade_rows(rows, template), subject.state)
        except RewardError as mistake:
            where = f" (seen with held-out problems, {benchmark.title})"
            yield replace(failure(mistake, where, recipe), fix="eval: {rewards: false}")


def missing_columns(pairs: list[tuple[RewardSpec, Reward]], there: set[str]) -> Iterator[Finding]:
    for spec, reward in pairs:
        if absent := sorted(reward.missing(there | {"trainer_state"})):
            fix = f"give it as a setting, rewards: {{{spec.name}: {{{absent[0]}: ...}}}}, or add the column"
            yield error(
                f"rewards.{spec.name}: needs {', '.join(absent)}, the data has {', '.join(sorted(there - {'prompt'}))}",
                "the gold's name is solution" if absent[0] in GOLD_NAMES else fix,
            )


def completions(problems: list[Problem], subject: Subject) -> dict[str, list[str]]:
    r"""For each kind of completion, one per problem.

    A box is the place of the answer in the template's style: `\boxed{}`, `#### ` or `<answer></answer>`. "wrong" is
    another problem's whole solution, "wrong in the box" another problem's answer after the right reasoning. "cut off"
    ends before the answer is first named. "nonsense" is scored at the longest length.
    """
    template = subject.recipe.template
    wrong = [
        replace(one, answer=other.answer if other.answer != one.answer else f"{one.answer}1", worked=other.worked)
        for one, other in zip(problems, problems[1:] + problems[:1], strict=True)
    ]
    pairs = list(zip(problems, wrong, strict=True))
    perfect = [template.target(one, worked=True) for one in problems]

    def boxed(answer: str) -> str:
        return template.target(Problem("", answer), worked=False)

    return {
        "perfect": perfect,
        "wrong": [template.target(other, worked=True) for other in wrong],
        "wrong in the box": [template.target(replace(one, answer=other.answer), worked=True) for one, other in pairs],
        "negated answer": [boxed(negated(one.answer)) for one in problems],
        "several boxes": ["\n".join(map(boxed, (other.answer, one.answer, "1234567"))) for one, other in pairs],
        "empty box": [boxed("") for _ in problems],
        "cut off": [
            text.partition(accepted(one.answer)[0])[0][: len(text) // 2]
            for one, text in zip(problems, perfect, strict=True)
        ],
        "an echo": [template.user.replace("{question}", problem.question) for problem in problems],
        "nonsense": ["the the answer of of so ? ( x y then it it is is " * 4] * len(problems),
        "empty": [""] * len(problems),
    }


def negated(gold: str) -> str:
    """-5 for 5 and 5 for -5; "not 0" and "not even" where there is no sign to change, or both are right."""
    answers = accepted(gold)
    other = answers[0][1:] if answers[0].startswith("-") else f"-{answers[0]}"
    return other if re.search("[1-9]", other) and other not in answers else f"not {answers[0]}"


def mean_score(reward: Reward, texts: list[str], rows: list[dict], subject: Subject, least: int = 0) -> float:
    """The mean over the problems, each with a group of equal completions of at least so many tokens; None counts 0, as
    in TRL's sum."""
    group = subject.recipe.num_generations
    texts, rows = [text for text in texts for _ in range(group)], [row for row in rows for _ in range(group)]
    ids = subject.tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = [max(least, 1 + len(some)) for some in ids]
    scores = reward(**call_arguments(texts, rows, subject.tokenizer, subject.state, lengths))
    return sum(score or 0.0 for score in scores) / len(scores)


def misled(
    totals: dict[str, float], weights: dict[str, float], scores: dict[str, list[float]], judged: bool
) -> Iterator[Finding]:
    """Where the sum of the rewards pays for something else than being right. Whether an entry reads the answer itself
    (`judged`) tells a fault from rewards for texts, such as `heuristic`, which compare the whole of them."""
    right, wrong = totals["perfect"], totals["wrong"]
    others = {kind: total for kind, total in totals.items() if kind != "perfect"}
    best = "wrong" if wrong >= right - EQUAL else max(others, key=others.__getitem__)
    if not judged and best == "wrong in the box" and same([right, others[best]]):
        yield warning(
            f"rewards: none reads the final answer, a wrong one after the right reasoning scores {right:.3g} too",
            ADD_CORRECTNESS,
        )
        return
    if others[best] >= right - EQUAL:
        than = "as much as" if same([right, others[best]]) else "more than"
        says = f'rewards: "{best}" scores {others[best]:.3g}, a perfect completion {right:.3g}'
        if best == "wrong":
            says = f"rewards: a wrong answer scores {wrong:.3g}, {than} the right one"
        yield error(says, instead(best, weights, scores))
        return
    form, being_right = wrong - totals["empty"], right - wrong
    if form > being_right:
        yield warning(
            f"rewards: format alone scores {form:.3g} (a wrong completion over an empty one), a right answer "
            f"{being_right:.3g} more",
            "raise the weight of correctness",
        )
    more = {kind: total for kind, total in others.items() if total > wrong + MUCH * being_right}
    if paid := {kind: total for kind, total in more.items() if kind != "wrong in the box"}:  # which is as honest
        earned = ", ".join(f"{kind} {total:.3g}" for kind, total in paid.items())
        yield warning(
            f"rewards: an ordinary wrong completion scores {wrong:.3g}, others score more ({earned})",
            "lower the weight of what rewards them",
        )


def instead(best: str, weights: dict[str, float], scores: dict[str, list[float]]) -> str:
    """What to change where the completions of the kind `best` earn too much."""
    more = [w * (a - b) for w, a, b in zip(weights.values(), scores[best], scores["perfect"], strict=True)]
    culprit = list(weights)[more.index(max(more))]
    nothing = culprit == "correctness" or max(more) <= EQUAL
    if nothing and weights.get("correctness", 0) > 0:
        return "rewards: {correctness: {correct: 1.0, wrong: 0.0, no_answer: 0.0}}"
    if nothing:
        return ADD_CORRECTNESS
    gate = ", or give it gate: correctness" if "correctness" in weights else ""
    return f"lower the weight of rewards.{culprit}{gate}"
