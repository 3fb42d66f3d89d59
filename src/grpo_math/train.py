"""One GRPO run, top to bottom: recipe, problems, prompts, rewards, TRL's GRPOTrainer, checkpoint, accuracy.

usage: accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
           -m grpo_math.train --config recipes/X.yaml [--key value ...]
   or: grpo-math train --config recipes/X.yaml [--key value ...]

Every key of the recipe can be given on the command line, nested ones with dots:
    --learning_rate 2e-6 --dataset.max_samples 100 --rewards.format.weight 0.1 --resume_from_checkpoint auto
"""

import functools
import json
import logging
import sys
import time
from dataclasses import asdict

from grpo_math import run_folder
from grpo_math.data import Problem, fingerprint, load_problems, mix
from grpo_math.errors import UserError, run_cli
from grpo_math.evaluate import load_eval_problems
from grpo_math.models import load_tokenizer
from grpo_math.prompts import length_filter, to_rows
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.rewards import Reward, build_rewards

logger = logging.getLogger("grpo_math.train")


def main(argv: list[str]) -> None:
    train(load_recipe(argv))


def train(recipe: Recipe) -> dict:
    """Train as the recipe says and return what results.json holds: steps, before, after, seconds."""
    started = time.perf_counter()
    checkpoint = run_folder.find_checkpoint(recipe)
    rewards = build_rewards(recipe.rewards, recipe.template)
    run_folder.open_folder(recipe.output_dir)

    tokenizer = load_tokenizer(recipe)
    problems = load_training_problems(recipe, tokenizer)
    held_out = load_eval_problems(recipe) if recipe.eval.before_after else []

    from grpo_math.callbacks import BeforeAfter, MetricsFile, Progress  # transformers loads here

    measured = BeforeAfter(recipe, tokenizer, held_out)
    callbacks = [measured, MetricsFile(recipe.output_dir), Progress()]
    trainer = make_trainer(recipe, tokenizer, to_rows(problems, recipe.template, tokenizer), rewards, callbacks)
    if trainer.is_world_process_zero():
        run_folder.write_facts(recipe, fingerprint(problems))

    training = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(recipe.output_dir / "final"))

    evaluations = {"before": measured.before, "after": measured.after}
    seconds = {"evaluate": sum(found.seconds for found in evaluations.values() if found)}
    seconds["train"] = time.perf_counter() - training - seconds["evaluate"]
    seconds["total"] = time.perf_counter() - started
    results = {"steps": trainer.state.global_step}
    results |= {moment: asdict(found) for moment, found in evaluations.items() if found}
    results["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    if trainer.is_world_process_zero():
        (recipe.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        logger.info("run folder: %s (the model is in final/)", recipe.output_dir)
    return results


def load_training_problems(recipe: Recipe, tokenizer) -> list[Problem]:
    parts = []
    for spec in recipe.datasets:
        parts.append(load_problems(spec, length_filter(recipe.template, tokenizer, spec.max_prompt_tokens)))
        logger.info("training on %s", parts[-1])
    return mix(parts, [spec.weight for spec in recipe.datasets], seed=recipe.trainer.get("seed", 42))


def make_trainer(recipe: Recipe, tokenizer, rows: list[dict], rewards: list[Reward], callbacks: list):
    """TRL's trainer for the recipe. What TRL or transformers refuse becomes a one-line error."""
    from datasets import Dataset
    from pyarrow import ArrowInvalid, ArrowTypeError
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading and saving
    try:
        dataset = Dataset.from_list(rows)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise UserError(f"dataset: a column has values of several types ({error}): make them one type") from error
    model = ModelConfig(**recipe.model)
    try:
        trainer = GRPOTrainer(
            model=model.model_name_or_path,
            args=trainer_config(recipe),
            reward_funcs=rewards,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
        )
    except (ImportError, OSError, ValueError) as error:
        logger.debug("TRL refused the run", exc_info=True)
        raise UserError(f"TRL refused the run: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)  # Progress speaks instead
    if recipe.template.stop and not trainer.args.use_vllm:
        # transformers finds stop strings only with the tokenizer at hand, and TRL does not pass it on.
        policy = trainer.accelerator.unwrap_model(trainer.model)
        policy.generate = functools.partial(policy.generate, tokenizer=tokenizer)
    return trainer


def trainer_config(recipe: Recipe):
    """GRPOConfig from the recipe's own keys over our few defaults."""
    from trl import GRPOConfig, ModelConfig

    given = {key: value for key, value in recipe.trainer.items() if key != "resume_from_checkpoint"}
    defaults = {"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "run_name": recipe.output_dir.name}
    model = ModelConfig(**recipe.model)
    stops = recipe.template.generation_kwargs(given.get("use_vllm", False))
    load = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    derived = {
        "reward_weights": [spec.weight for spec in recipe.rewards],
        "generation_kwargs": stops | (given.get("generation_kwargs") or {}),
        "model_init_kwargs": load | (given.get("model_init_kwargs") or {}),
    }
    try:
        return GRPOConfig(**defaults | given | derived)
    except (ImportError, ValueError) as error:
        raise UserError(f"{recipe.source}: TRL refused it: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    from grpo_math.__main__ import dispatch

    raise SystemExit(run_cli(dispatch, ["train", *sys.argv[1:]]))
