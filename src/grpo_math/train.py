"""One GRPO run, top to bottom: recipe, problems, prompts, rewards, TRL's GRPOTrainer, checkpoint, accuracy.

usage: accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
           -m grpo_math.train --config recipes/X.yaml [--key value ...]
   or: grpo-math train --config recipes/X.yaml [--key value ...]

Every key of the recipe can be given on the command line, nested ones with dots:
    --learning_rate 2e-6 --dataset.max_samples 100 --rewards.format.weight 0.1 --resume_from_checkpoint auto
"""

import math
import os
import time

from grpo_math import run_folder
from grpo_math.data import Problem
from grpo_math.errors import UserError, one_line
from grpo_math.evaluate import load_eval_problems
from grpo_math.grading import configure
from grpo_math.models import load_reward_models, load_tokenizer, policy_arguments
from grpo_math.prompts import to_rows
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.rewards import build_rewards
from grpo_math.training import load_training_problems, run, to_dataset, trainer_arguments


def main(argv: list[str]) -> None:
    train(load_recipe(argv, "GRPO"))


def train(recipe: Recipe) -> dict:
    """Train as the recipe says and return what results.json holds: steps, before, after, seconds."""
    started = time.perf_counter()
    checkpoint = run_folder.find_checkpoint(recipe)
    rewards = build_rewards(recipe.rewards, recipe.template, recipe.max_completion_length)
    configure(recipe.grading)

    from grpo_math.callbacks import callbacks  # torch loads here; all of the recipe is checked by now
    from grpo_math.trainer import Trainer

    config = grpo_config(recipe)
    if finished := run_folder.finished_results(recipe, checkpoint, config):
        return finished
    run_folder.open_folder(recipe.output_dir)

    tokenizer = load_tokenizer(recipe)
    problems = load_training_problems(recipe, tokenizer)
    check_enough(problems, config)
    measured, *others = callbacks(recipe, tokenizer, load_eval_problems(recipe) if recipe.eval.wanted else [])
    scorers, scorer_tokenizers = load_reward_models(rewards, [spec.name for spec in recipe.rewards], recipe.template)
    policy = policy_arguments(recipe, config)
    with one_line(f"{recipe.source}: TRL refused it"):
        trainer = Trainer(
            **policy,
            args=config,
            reward_funcs=scorers,
            reward_processing_classes=scorer_tokenizers,
            train_dataset=to_dataset(to_rows(problems, recipe.template, tokenizer)),
            processing_class=tokenizer,
            callbacks=[measured, *others],
            stop=() if config.use_vllm else recipe.template.stop,
            baseline=recipe.baseline,
        )
    return run(recipe, trainer, problems, measured, checkpoint, started)


def grpo_config(recipe: Recipe):
    from trl import GRPOConfig

    arguments = trainer_arguments(recipe)
    stops = recipe.template.generation_kwargs(arguments.get("use_vllm", False))
    arguments["generation_kwargs"] = stops | (arguments.get("generation_kwargs") or {})
    arguments["reward_weights"] = [spec.weight for spec in recipe.rewards]
    check_groups(arguments)
    with one_line(f"{recipe.source}: TRL refused it"):
        return GRPOConfig(**arguments)


def check_groups(arguments: dict) -> None:
    """The completions of a step must be whole groups. Where the recipe cuts its own batches, TRL says so itself."""
    if {"generation_batch_size", "steps_per_generation"} & arguments.keys():
        return
    sizes = [arguments.get("per_device_train_batch_size", 8), arguments.get("gradient_accumulation_steps", 1)]
    sizes.append(int(os.environ.get("WORLD_SIZE", "1")))
    generations = arguments.get("num_generations", 8)
    if math.prod(sizes) % generations:
        raise UserError(
            f"num_generations: {generations} does not divide the {math.prod(sizes)} completions of a step ("
            f"per_device_train_batch_size {sizes[0]} x gradient_accumulation_steps {sizes[1]} x processes {sizes[2]}): "
            "make it a divisor, or change these"
        )


def check_enough(problems: list[Problem], config) -> None:
    """TRL drops an incomplete generation batch: with fewer problems than one needs, no step would be made."""
    needed = config.generation_batch_size // config.num_generations
    if len(problems) < needed:
        raise UserError(
            f"dataset: {len(problems)} problems, but one generation batch takes {needed} (generation_batch_size "
            f"{config.generation_batch_size} / num_generations {config.num_generations}): lower "
            "per_device_train_batch_size or gradient_accumulation_steps, or give more problems"
        )


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("train")
