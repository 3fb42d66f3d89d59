"""The shipped rewards with their settings; or what a recipe's rewards give one text, entry by entry."""

import argparse
import inspect
from dataclasses import replace
from typing import Any

from grpo_math.data import Problem, load_problems, to_rows
from grpo_math.data.functions import parameters
from grpo_math.errors import UserError
from grpo_math.grading import configure, grade
from grpo_math.models import load_tokenizer
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.rewards import REWARDS, Reward, build_rewards, call_arguments, settings


def main(options: argparse.Namespace) -> None:
    if options.config is None and options.completion is None:
        print(listing())
        return
    if options.config is None or options.completion is None:
        raise UserError("rewards: give --try recipes/X.yaml and --completion TEXT, or nothing at all")
    print(scored(load_recipe(options.words, "GRPO"), options.completion, options.gold))


def listing() -> str:
    lines = []
    for name, function in REWARDS.items():
        lines.append(f"{name:12} {(inspect.getdoc(function) or '').partition(chr(10))[0]}")
        own = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in settings(function).items())
        lines += [f"{'':12} {{{own}}}"] if own else []
    lines.append("\nevery entry: {weight: 1.0, scale: 1.0, bias: 0.0, gate: another entry that must earn something}")
    lines.append("your own: {path: my_rewards.py:function, ...}; a reward model: {reward_model: folder or Hub id}")
    return "\n".join(lines)


def scored(recipe: Recipe, completion: str, gold: str | None) -> str:
    """The score of each entry, its weight, and the reward they add up to."""
    configure(recipe.grading)
    template = recipe.template
    rewards = build_rewards(recipe.rewards, template, recipe.max_completion_length)
    counting = any("completion_ids" in parameters(one.function) for one in rewards if isinstance(one, Reward))
    tokenizer: Any = load_tokenizer(recipe.keys, template) if counting or (template.chat and template.prefill) else None
    problem = Problem("(none)", gold or "")
    alone = {*to_rows([problem], template, tokenizer)[0], "trainer_state"}
    if gold is None or any(reward.missing(alone) for reward in rewards if isinstance(reward, Reward)):
        problem = load_problems(recipe.datasets[0].model_copy(update={"max_samples": 1})).problems[0]
        problem = problem if gold is None else replace(problem, answer=gold)
    rows, total = to_rows([problem], template, tokenizer), 0.0
    seen = grade(template.full_text(completion), problem.answer, template.answer_style)
    lines = [
        f"solution: {problem.answer}",
        f"answer: {seen.answer} ({seen.how})",
        f"{'':16} {'score':>8} {'weight':>8}",
    ]
    for spec, reward in zip(recipe.rewards, rewards, strict=True):
        shown, remark = "-", "   a reward model, not tried"
        if isinstance(reward, Reward):
            (score,) = reward(**call_arguments([completion], rows, tokenizer))
            total += spec.weight * (score or 0.0)
            shown, remark = "None" if score is None else format(score, ".4g"), ""
        lines.append(f"{spec.name:16} {shown:>8} {spec.weight:>8g}{remark}")
    return "\n".join([*lines, f"{'reward':16} {total:>8.4g}"])
