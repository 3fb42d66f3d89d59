"""Checks of the rewards: what each gives to completions that are right, wrong, empty, cut off, or nonsense."""

from collections.abc import Iterator
from dataclasses import replace

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data import Problem, meta_columns, to_rows
from grpo_math.errors import RewardError
from grpo_math.evaluation import Scoring, grade_rows
from grpo_math.evaluation.solve import rows_of
from grpo_math.generation import Completion
from grpo_math.rewards import Reward, RewardSpec, call_arguments

EQUAL = 1e-9  # scores closer than this are the same
PROBLEMS = 4  # tried; scores are means over them
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
    missing = list(missing_columns(pairs, rows[0].keys() | meta_columns(subject.problems)))
    yield from missing
    if missing or not pairs:
        return
    scores, failed = {}, False
    for kind, texts in completions(problems, subject).items():
        try:
            scores[kind] = [mean_score(one, texts, rows, subject) for _, one in pairs]
        except RewardError as mistake:
            sure = kind == "perfect" and recipe.on_reward_error == "stop"
            yield error(str(mistake)) if sure else warning(f"{mistake} (seen with {kind} completions)")
            failed = True
    if failed:
        return
    weights = {spec.name: spec.weight for spec, _ in pairs}
    totals = {kind: sum(w * s for w, s in zip(weights.values(), found, strict=True)) for kind, found in scores.items()}
    width = max(map(len, [*weights, "reward"])) + 2
    lines = [f"{'mean score of':14}" + "".join(f"{name:>{width}}" for name in [*weights, "reward"])]
    for kind, found in scores.items():
        lines.append(f"{kind:14}" + "".join(f"{score:>{width}.3g}" for score in [*found, totals[kind]]))
    yield note("\n".join(lines))
    for name, given in zip(weights, zip(*scores.values(), strict=True), strict=True):
        if max(given) - min(given) <= EQUAL:
            yield warning(
                f"rewards.{name}: gives {given[0]:g} to a perfect, a wrong, an empty and every other completion: it "
                "teaches nothing",
                f"rewards: {{{name}: false}}, or look at what it reads",
            )
    if not learned:
        yield from misled(totals, weights, scores)


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
            says, fix = f"{mistake} (seen with held-out problems, {benchmark.title})", "eval: {rewards: false}"
            yield error(says, fix) if recipe.on_reward_error == "stop" else warning(says, fix)


def missing_columns(pairs: list[tuple[RewardSpec, Reward]], there: set[str]) -> Iterator[Finding]:
    for spec, reward in pairs:
        if absent := sorted(reward.missing(there | {"trainer_state"})):
            fix = f"give it as a setting, rewards: {{{spec.name}: {{{absent[0]}: ...}}}}, or add the column"
            yield error(
                f"rewards.{spec.name}: wants {', '.join(absent)}, the data has {', '.join(sorted(there - {'prompt'}))}",
                "the gold's name is solution" if absent[0] in GOLD_NAMES else fix,
            )


def completions(problems: list[Problem], subject: Subject) -> dict[str, list[str]]:
    """For each kind of completion, one per problem."""
    template = subject.recipe.template
    others = [other.answer for other in problems[1:] + problems[:1]]
    wrong = [
        replace(one, answer=other if other != one.answer else f"{one.answer}1")
        for one, other in zip(problems, others, strict=True)
    ]
    perfect = [template.target(problem, worked=True) for problem in problems]
    hedging = [
        "\n".join(template.target(said, worked=False) for said in (other, one, replace(one, answer="1234567")))
        for one, other in zip(problems, wrong, strict=True)
    ]
    return {
        "perfect": perfect,
        "wrong": [template.target(problem, worked=True) for problem in wrong],
        "hedging": hedging,
        "cut off": [text[: len(text) // 2] for text in perfect],
        "an echo": [template.user.replace("{question}", problem.question) for problem in problems],
        "nonsense": ["the the answer of of so 7 ( x y then it it is is " * 4] * len(problems),
        "empty": [""] * len(problems),
    }


def mean_score(reward: Reward, texts: list[str], rows: list[dict], subject: Subject) -> float:
    """The mean over the problems, each with a group of equal completions; None counts 0, as in TRL's sum."""
    group = subject.recipe.trainer.get("num_generations", 8)
    texts, rows = [text for text in texts for _ in range(group)], [row for row in rows for _ in range(group)]
    scores = reward(**call_arguments(texts, rows, subject.tokenizer, subject.state))
    return sum(score or 0.0 for score in scores) / len(scores)


def misled(totals: dict[str, float], weights: dict[str, float], scores: dict[str, list[float]]) -> Iterator[Finding]:
    """Where the sum of the rewards pays for something else than being right."""
    best = max(totals, key=totals.__getitem__)
    if totals[best] > totals["perfect"] + EQUAL:
        more = [w * (a - b) for w, a, b in zip(weights.values(), scores[best], scores["perfect"], strict=True)]
        culprit = list(weights)[more.index(max(more))]
        yield warning(
            f"rewards: {best}: {totals[best]:.3g}, a perfect completion {totals['perfect']:.3g}",
            f"lower the weight of rewards.{culprit}, or give it gate: correctness",
        )
        return
    form, right = totals["wrong"] - totals["empty"], totals["perfect"] - totals["wrong"]
    if right <= EQUAL:
        yield warning(
            f"rewards: a wrong answer earns {totals['wrong']:.3g}, as much as the right one",
            "rewards: {correctness: {weight: 1.0}} would tell them apart",
        )
    elif form > right:
        yield warning(
            f"rewards: form alone is worth {form:.3g} (a wrong completion against none), being right {right:.3g} more",
            "raise the weight of correctness",
        )
    paid = {kind: total for kind, total in totals.items() if kind != "perfect" and total > totals["wrong"] + EQUAL}
    if paid:
        earned = ", ".join(f"{kind} {total:.3g}" for kind, total in paid.items())
        yield warning(
            f"rewards: an honest wrong completion earns {totals['wrong']:.3g}, others more ({earned})",
            "lower the weight of what pays for them",
        )
