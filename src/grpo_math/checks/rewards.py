"""Preflight of the rewards: what each gives to completions that are right, wrong, empty, cut off, or nonsense."""

import inspect
from collections.abc import Iterator
from dataclasses import replace

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data.functions import parameters
from grpo_math.data.problems import Problem
from grpo_math.data.prompts import PromptTemplate, meta_columns, to_rows
from grpo_math.errors import RewardError
from grpo_math.grading import configure
from grpo_math.rewards.reward import Reward, RewardSpec

EQUAL = 1e-9  # as good as
PROBLEMS = 4  # are asked; scores are means over them
FROM_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra", "environments"}
FROM_US = {"template", "grades", "max_completion_length"}


def audit(subject: Subject) -> Iterator[Finding]:
    """Columns the rewards want and the data lacks; then the table, and what it shows."""
    recipe = subject.recipe
    if recipe.sft:
        yield note("an SFT has none")
        return
    configure(recipe.grading)
    rewards = subject.rewards
    pairs = [(spec, one) for spec, one in zip(recipe.rewards, rewards, strict=True) if isinstance(one, Reward)]
    learned = [spec.name for spec, one in zip(recipe.rewards, rewards, strict=True) if isinstance(one, str)]
    if learned:
        yield note(f"{', '.join(learned)}: not tried here, a reward model")
    problems = subject.problems[:: max(1, len(subject.problems) // PROBLEMS)][:PROBLEMS]  # of every dataset
    rows = to_rows(problems, recipe.template, subject.tokenizer, meta_columns(subject.problems))
    missing = list(missing_columns(pairs, set(rows[0])))
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
    totals = {
        kind: sum(spec.weight * score for (spec, _), score in zip(pairs, found, strict=True))
        for kind, found in scores.items()
    }
    yield note("\n".join(table([spec.name for spec, _ in pairs], scores, totals)))
    yield from constant([spec.name for spec, _ in pairs], scores)
    if not learned:
        yield from misled(totals, {spec.name: spec.weight for spec, _ in pairs}, scores)


def missing_columns(pairs: list[tuple[RewardSpec, Reward]], there: set[str]) -> Iterator[Finding]:
    for spec, reward in pairs:
        wanted = {
            name
            for name in parameters(reward.function)
            if inspect.signature(reward.function).parameters[name].default is inspect.Parameter.empty
        }
        absent = sorted(wanted - there - FROM_TRL - FROM_US - spec.params.keys())
        if absent:
            gold = absent[0] in ("answer", "gold", "label", "target", "ground_truth")
            yield error(
                f"rewards.{spec.name}: wants {', '.join(absent)}, the data has {', '.join(sorted(there - {'prompt'}))}",
                "the gold's name is solution"
                if gold
                else f"give it as a setting, rewards: {{{spec.name}: {{{absent[0]}: ...}}}}, or add the column",
            )


def completions(problems: list[Problem], subject: Subject) -> dict[str, list[str]]:
    """The same completions for every problem, by what they are."""
    template = subject.recipe.template
    others = problems[1:] + problems[:1]
    wrong = [replace(one, answer=wrong_answer(one, other)) for one, other in zip(problems, others, strict=True)]
    perfect = [template.target(problem, worked=True) for problem in problems]
    return {
        "perfect": perfect,
        "wrong": [template.target(problem, worked=True) for problem in wrong],
        "hedging": [hedged(right, other, template) for right, other in zip(problems, wrong, strict=True)],
        "cut off": [text[: len(text) // 2] for text in perfect],
        "an echo": [template.user.replace("{question}", problem.question) for problem in problems],
        "nonsense": ["the the answer of of so 7 ( x y then it it is is " * 4] * len(problems),
        "empty": [""] * len(problems),
    }


def wrong_answer(one: Problem, other: Problem) -> str:
    return other.answer if other.answer != one.answer else f"{one.answer}1"


def hedged(right: Problem, wrong: Problem, template: PromptTemplate) -> str:
    """The right answer and two wrong ones, each in the answer style."""
    said = [template.target(one, worked=False) for one in (wrong, right, replace(wrong, answer="1234567"))]
    return "\n".join(said)


def mean_score(reward: Reward, texts: list[str], rows: list[dict], subject: Subject) -> float:
    """Over the problems, a group of the same completion each; what cannot be scored counts 0, as in TRL's sum."""
    group = subject.recipe.trainer.get("num_generations", 8)
    texts, rows = ([one for one in some for _ in range(group)] for some in (texts, rows))
    scores = scores_of(reward, texts, rows, subject)
    return sum(score or 0.0 for score in scores) / len(scores)


def scores_of(reward: Reward, texts: list[str], rows: list[dict], subject: Subject) -> list[float | None]:
    """What the reward gives to each text as the completion of the prompt in its row, in one call as TRL makes it."""
    from transformers import TrainerState

    steps = max(1, subject.recipe.trainer.get("max_steps", 0))
    state = TrainerState(max_steps=steps, num_train_epochs=1, epoch=0.0)
    end = subject.tokenizer.eos_token_id
    ids = [[*subject.tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    chat = isinstance(rows[0]["prompt"], list)
    said = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    silent = {"trainer_state": state, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    return reward(prompts=[row["prompt"] for row in rows], completions=said, completion_ids=ids, **columns, **silent)


def table(names: list[str], scores: dict[str, list[float]], totals: dict[str, float]) -> list[str]:
    """Kinds down, rewards across, and what they add up to."""
    width = max(map(len, [*names, "reward"])) + 2
    lines = [f"{'mean score of':14}" + "".join(f"{name:>{width}}" for name in [*names, "reward"])]
    for kind, found in scores.items():
        lines.append(f"{kind:14}" + "".join(f"{score:>{width}.3g}" for score in [*found, totals[kind]]))
    return lines


def constant(names: list[str], scores: dict[str, list[float]]) -> Iterator[Finding]:
    for index, name in enumerate(names):
        found = {round(one[index], 9) for one in scores.values()}
        if len(found) == 1:
            yield warning(
                f"rewards.{name}: gives {found.pop():g} to a perfect, a wrong, an empty and every other completion: it "
                "teaches nothing",
                f"rewards: {{{name}: false}}, or look at what it reads",
            )


def misled(totals: dict[str, float], weights: dict[str, float], scores: dict[str, list[float]]) -> Iterator[Finding]:
    """Where the sum of the rewards pays for something else than being right."""
    best = max(totals, key=totals.get)
    more = [weight * (a - b) for weight, a, b in zip(weights.values(), scores[best], scores["perfect"], strict=True)]
    culprit = list(weights)[more.index(max(more))]
    if totals[best] > totals["perfect"] + EQUAL:
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
