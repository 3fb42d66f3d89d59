"""One GRPO run, top to bottom: recipe, problems, prompts, rewards, TRL's GRPOTrainer, checkpoint, accuracy.

usage: accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
           -m grpo_math.train --config recipes/X.yaml [--key value ...]
   or: grpo-math train --config recipes/X.yaml [--key value ...]

Every key of the recipe can be given on the command line, nested ones with dots:
    --learning_rate 2e-6 --dataset.max_samples 100 --rewards.format.weight 0.1 --resume_from_checkpoint auto
"""

import argparse
import contextlib
import logging
import time
from pathlib import Path

from grpo_math.checks.preflight import check_training, dry_run
from grpo_math.data import load_parts, mix_parts, to_dataset, to_rows
from grpo_math.errors import one_line
from grpo_math.evaluation.solve import load_benchmarks
from grpo_math.generation.vllm_engine import (
    LARGE,
    check_parallel,
    colocated_engine,
    engine_arguments,
    fit_window,
    longest_sequence,
)
from grpo_math.generation.vllm_server import check_server
from grpo_math.grading import configure
from grpo_math.models.models import load_reward_models, load_tokenizer, policy_arguments
from grpo_math.models.safety import load_arguments
from grpo_math.recipe import batch
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.report.model_card import push, write_card
from grpo_math.rewards import build_rewards, for_trl
from grpo_math.runs import checkpoints
from grpo_math.runs import folder as run_folder
from grpo_math.trainer.config import check_world, grpo_config
from grpo_math.trainer.loop import run
from grpo_math.trainer.rollouts import Rollouts

logger = logging.getLogger(__name__)


def main(options: argparse.Namespace) -> None:
    if options.dry_run:
        return dry_run(options.words)

    from grpo_math.report.report import report_end

    recipe = load_recipe(options.words, "GRPO")
    report_end(train(recipe), recipe.output_dir)


def train(recipe: Recipe) -> dict:
    """Train as the recipe says and return what results.json holds: steps, before, after, seconds."""
    started = time.perf_counter()
    checkpoint = checkpoints.find_checkpoint(recipe)
    skip = recipe.on_reward_error == "skip"
    rewards = build_rewards(recipe.rewards, recipe.template, recipe.max_completion_length, skip)
    configure(recipe.grading)

    config = grpo_config(recipe)  # torch loads here; all of the recipe is checked by now
    check_world(recipe, config)
    if finished := checkpoints.finished_results(recipe, checkpoint, config):
        return finished
    run_folder.open_folder(recipe.output_dir)
    with run_folder.at_work(recipe.output_dir):
        return train_here(recipe, config, rewards, checkpoint, started)


def train_here(recipe: Recipe, config, rewards: list, checkpoint: Path | None, started: float) -> dict:
    """What takes time: problems, model, steps. `config` is TRL's."""
    from grpo_math.trainer.callbacks import callbacks
    from grpo_math.trainer.trainer import Trainer

    tokenizer = load_tokenizer(recipe)
    parts = load_parts(recipe.datasets, recipe.template, tokenizer, recipe.eval_datasets)
    problems = mix_parts(parts, recipe.datasets, config.seed)
    check_training(recipe, tokenizer, parts)
    logger.info("%s", batch.describe_batch(config, batch.world_size(), len(problems)))
    benchmarks = load_benchmarks(recipe.eval_datasets) if recipe.eval.wanted else []
    engine = contextlib.nullcontext()
    if config.use_vllm:
        generated = [(problems, recipe.max_completion_length)]
        generated += [(benchmark.problems, recipe.eval_completion_length) for benchmark in benchmarks]
        arguments = prepare_vllm(recipe, config, *longest_sequence(generated, recipe.template, tokenizer))
        engine = colocated_engine(arguments, config.seed)
    measured, watching = callbacks(recipe, tokenizer, benchmarks)
    scorers, scorer_tokenizers = load_reward_models(
        rewards, [spec.name for spec in recipe.rewards], recipe.template, **load_arguments(recipe.trainer)
    )
    policy = policy_arguments(recipe, config)
    with engine, one_line(f"{recipe.source}: TRL refused it"):
        trainer = Trainer(
            **policy,
            args=config,
            reward_funcs=[for_trl(scorer) for scorer in scorers],
            reward_processing_classes=scorer_tokenizers,
            train_dataset=to_dataset(to_rows(problems, recipe.template, tokenizer)),
            processing_class=tokenizer,
            callbacks=watching,
            rollouts=Rollouts(recipe.output_dir, recipe.template, recipe.completions.every),
            stop=() if config.use_vllm else recipe.template.stop,
            baseline=recipe.baseline,
        )
    return run(recipe, trainer, problems, measured, checkpoint, started, write_card, push)


def prepare_vllm(recipe: Recipe, config, longest_prompt: int, longest_completion: int) -> dict:
    """Settle what vLLM runs with, in `config`, and check it; returns the colocated engine's further arguments."""
    import torch

    if config.vllm_mode == "server":
        check_server(recipe, config, longest_prompt, longest_completion)
        return {}
    check_parallel(recipe, batch.world_size())
    config.vllm_max_model_length = fit_window(config.vllm_max_model_length, longest_prompt, longest_completion)
    if "vllm_enable_sleep_mode" not in recipe.trainer:
        config.vllm_enable_sleep_mode = torch.cuda.is_available() and config.vllm_gpu_memory_utilization > LARGE
    return engine_arguments(recipe)


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("train")
