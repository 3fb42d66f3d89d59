"""accelerate launch --config_file accelerate_configs/single_gpu.yaml -m grpo_math.sft --config recipes/sft_X.yaml

One SFT run, the warm start of a GRPO run, from top to bottom: the same problems as prompts and worked answers, TRL's
SFTTrainer. `grpo-math sft --config recipes/sft_X.yaml` is the same on one process. The worked solutions are written in
the prompt template's own answer style, and the loss is on them alone. A GRPO run starts from the result with
`model_name_or_path: runs/NAME`, a whole model or an adapter.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from grpo_math.data import load_parts, mix_parts, to_dataset
from grpo_math.data.pairs import Pairs
from grpo_math.errors import UserError, one_line
from grpo_math.grading import configure
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.checkpoints import find_checkpoint, finished_results
from grpo_math.runs.folder import at_work
from grpo_math.runs.logs import run_logging
from grpo_math.train import finish


def main(options: argparse.Namespace) -> None:
    """The verb: train, and write the report if the training finished."""
    from grpo_math.report.report import train_and_report

    train_and_report(options, "SFT", sft)


@run_logging()
def sft(recipe: Recipe | str | Path, **overrides: Any) -> dict:
    """Train a model on worked solutions, the warm start of a GRPO run, as `grpo-math sft` does.

    Args:
        recipe: The path of a recipe with `sft:`, the name of a shipped one, or a checked recipe.
        **overrides: Keys of the recipe to replace. Only with a path or a name.

    Returns:
        The content of `results.json`, as `train` returns it. An empty dict if a signal stopped the training.

    Raises:
        UserError: For everything that is wrong with the recipe, the data, the model or the machine, one line each.
    """
    started = time.perf_counter()

    # The recipe
    recipe = load_recipe(recipe, "SFT", **overrides)
    if recipe.sft is None:
        raise UserError(f"{recipe.source}: a recipe for GRPO, not for SFT: add sft: {{target: worked}}")
    folder, template = recipe.output_dir, recipe.template
    checkpoint = find_checkpoint(folder, recipe.trainer.get("resume_from_checkpoint"), recipe.raw)
    configure(recipe.grading)

    # torch and TRL are imported from here on: the whole recipe is checked by now
    from grpo_math.runs.progress import stage

    with stage("loading PyTorch and TRL"):
        from grpo_math.checks import check_training
        from grpo_math.evaluation import load_benchmarks
        from grpo_math.models import ModelSource, end_tokens, load_tokenizer, policy_arguments
        from grpo_math.trainer.config import check_machine, check_world, sft_config
        from grpo_math.trainer.trainer import SupervisedTrainer

    check_machine(recipe)
    config = sft_config(recipe)
    check_world(recipe, config)
    if results := finished_results(folder, checkpoint, recipe.raw, config.max_steps, config.num_train_epochs):
        return results

    with at_work(folder):
        # Problems, for training and for evaluation
        tokenizer = load_tokenizer(recipe.keys, template)
        pairs = Pairs(template, tokenizer, recipe.sft.worked, config.max_length)
        parts = load_parts(recipe.datasets, template, tokenizer, recipe.eval_datasets, pairs.unusable)
        problems = mix_parts(parts, recipe.datasets, config.seed)
        benchmarks = load_benchmarks(recipe.eval_datasets) if recipe.eval.wanted else []
        check_training(recipe, tokenizer, parts, benchmarks, config.deepspeed_plugin)
        pairs.check(problems[0], end_tokens(ModelSource.of(recipe.keys), tokenizer))

        # Model and trainer
        with stage("loading the model"), one_line(f"{recipe.source}: TRL refused it"):
            policy = policy_arguments(recipe.keys, config, checkpoint)
            trainer = SupervisedTrainer(
                **policy,
                args=config,
                train_dataset=to_dataset([pairs.row(problem) for problem in problems]),
                processing_class=tokenizer,
            )
        return finish(recipe, trainer, problems, benchmarks, checkpoint, started)


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("sft")
