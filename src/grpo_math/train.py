"""accelerate launch --config_file accelerate_configs/single_gpu.yaml -m grpo_math.train --config recipes/X.yaml

One GRPO run from top to bottom: recipe, problems, rewards, model, trainer, train, evaluate, save. `grpo-math train
--config recipes/X.yaml` is the same on one process. Every key of the recipe can be given on the command line, nested
ones with dots: --learning_rate 2e-6 --dataset.max_samples 100 --rewards.format.weight 0.1 --resume_from_checkpoint auto

In a notebook: `from grpo_math.train import train; train("recipes/X.yaml", learning_rate=2e-6)`.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_math.data import Problem, fingerprint, load_parts, mix_parts, to_dataset, to_rows
from grpo_math.errors import one_line
from grpo_math.grading import configure
from grpo_math.recipe.batch import describe_batch, world_size
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.rewards import Reward, build_rewards, data_columns, for_trl, graded_names
from grpo_math.runs.checkpoints import find_checkpoint, finished_results, writes_to
from grpo_math.runs.folder import at_work, command, resume_command, write_results
from grpo_math.runs.logs import run_logging

logger = logging.getLogger(__name__)


def main(options: argparse.Namespace) -> None:
    """The verb: train, and write the report if the training finished."""
    from grpo_math.report.report import train_and_report

    train_and_report(options, "GRPO", train)


@run_logging()
def train(recipe: Recipe | str | Path, **overrides: Any) -> dict:
    """Train a policy with GRPO, as `grpo-math train` does, and save it in the recipe's `output_dir`.

    Args:
        recipe: The path of a recipe, the name of a shipped one, or a checked recipe.
        **overrides: Keys of the recipe to replace, such as `learning_rate=2e-6` or `dataset={"max_samples": 100}`;
            mappings are merged key by key. Only with a path or a name.

    Returns:
        The content of `results.json`: `steps`, `seconds`, and where there was an evaluation `before`, `after` and
            `best`, each with `accuracy` in [0, 1] and its 95 % interval; `stopped`, if an evaluation ended the
            training. An empty dict if a signal stopped it.

    Raises:
        UserError: For everything that is wrong with the recipe, the data, the model or the machine, one line each.
    """
    started = time.perf_counter()

    # The recipe
    recipe = load_recipe(recipe, "GRPO", **overrides)
    folder, template = recipe.output_dir, recipe.template
    checkpoint = find_checkpoint(folder, recipe.trainer.get("resume_from_checkpoint"), recipe.raw)
    rewards = build_rewards(recipe.rewards, template, recipe.max_completion_length, recipe.on_reward_error == "skip")
    configure(recipe.grading)

    # torch and TRL are imported from here on: the whole recipe is checked by now
    from grpo_math.runs.progress import stage

    with stage("loading PyTorch and TRL"):
        from grpo_math.checks import check_training
        from grpo_math.evaluation import load_benchmarks
        from grpo_math.models import load_reward_models, load_tokenizer, load_tools, policy_arguments
        from grpo_math.trainer.config import check_machine, check_world, grpo_config, vllm_engine
        from grpo_math.trainer.trainer import Trainer

    check_machine(recipe)
    config = grpo_config(recipe)
    check_world(recipe, config)
    if results := finished_results(folder, checkpoint, recipe.raw, config.max_steps, config.num_train_epochs):
        return results

    with at_work(folder):
        # Problems, for training and for evaluation
        tools = load_tools(recipe.tools, recipe.environment, recipe.trainer.get("max_tool_calling_iterations"))
        tokenizer = load_tokenizer(recipe.keys, template, tools)
        group = config.num_generations
        parts = load_parts(recipe.datasets, template, tokenizer, recipe.eval_datasets, num_generations=group)
        problems = mix_parts(parts, recipe.datasets, config.seed)
        benchmarks = load_benchmarks(recipe.eval_datasets) if recipe.eval.wanted else []
        columns, left_out = data_columns(rewards, problems, every=recipe.environment is not None)
        if left_out:
            logger.info("warning: %s", left_out)
        check_training(recipe, tokenizer, parts, benchmarks, config.deepspeed_plugin)
        logger.info("%s", describe_batch(config, world_size(), len(problems), recipe.rounds))

        # Rewards, model and trainer
        engine = vllm_engine(recipe, config, tokenizer, problems, benchmarks)
        with stage(f"loading the model{' and starting vLLM' if config.use_vllm else ''}"):
            reward_funcs, reward_tokenizers = load_reward_models(
                rewards, [spec.name for spec in recipe.rewards], template, recipe.keys
            )
            policy = policy_arguments(recipe.keys, config, checkpoint)
            with engine, one_line(f"{recipe.source}: TRL refused it"):
                trainer = Trainer(
                    **policy,
                    args=config,
                    reward_funcs=[for_trl(reward) for reward in reward_funcs],
                    reward_processing_classes=reward_tokenizers,
                    train_dataset=to_dataset(to_rows(problems, template, tokenizer, columns)),
                    processing_class=tokenizer,
                    template=template,
                    baseline=recipe.baseline,
                    rounds=recipe.rounds,
                    tools=tools and tools.functions,
                    environment_factory=tools and tools.environment,
                )
        return finish(recipe, trainer, problems, benchmarks, checkpoint, started, rewards, tools)


def finish(
    recipe: Recipe,
    trainer: Any,
    problems: list[Problem],
    benchmarks: list,
    checkpoint: Path | None,
    started: float,
    rewards: Sequence[Reward | str] = (),
    tools: Any = None,
) -> dict:
    """What a GRPO run and an SFT run share once TRL's trainer is built: train, evaluate on the `benchmarks`, save.
    Returns what results.json holds; {} where the run was stopped. `started` is a time of time.perf_counter."""
    from grpo_math.evaluation import Scoring
    from grpo_math.models import ModelSource, check_finite, freeze_vision, widen
    from grpo_math.report.model_card import push, write_card
    from grpo_math.runs.progress import stage
    from grpo_math.trainer.alarms import Alarms
    from grpo_math.trainer.callbacks import Evaluations
    from grpo_math.trainer.checkpoints import save_whole
    from grpo_math.trainer.course import Course
    from grpo_math.trainer.loop import begin, run

    folder, source = recipe.output_dir, ModelSource.of(recipe.keys)
    widen(trainer.model, source)
    freeze_vision(trainer.model)
    check_finite(trainer.model, source.name)

    with writes_to(folder):
        # Train, and evaluate before, during and after
        environment = begin(trainer, checkpoint, recipe.raw, recipe.dump(), fingerprint(problems))
        scoring = Scoring(recipe, benchmarks, trainer.processing_class, in_training=True)
        for line in scoring.left_out():
            logger.info("warning: %s", line)
        evaluations = Evaluations(trainer, benchmarks, recipe.eval, recipe.eval_completion_length, scoring, tools)
        graded = graded_names(recipe.rewards, rewards)
        template, tokenizer = recipe.template, trainer.processing_class
        switch = template.thinks(tokenizer) and template.can_stop_thinking(tokenizer)
        alarms = Alarms(Course(folder, recipe.alarms, template, recipe.baseline, graded, switch))
        again = resume_command(command(), folder, "sft" if recipe.sft else "train")
        results = run(trainer, evaluations, alarms, checkpoint, again, recipe.completions.every)
        if not results:
            return {}

        # Save the model with its card, and the results
        with stage("saving the model"):
            save_whole(trainer, folder / "final", lambda final: write_card(recipe, final, results, environment))
        write_results(folder, results, started)
    push(trainer, folder / "final")
    return results


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("train")
