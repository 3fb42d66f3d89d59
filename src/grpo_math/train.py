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
from grpo_math.errors import UserError, one_line
from grpo_math.evaluate import load_eval_problems
from grpo_math.grading import configure
from grpo_math.models import load_tokenizer
from grpo_math.prompts import PromptTemplate, length_filter, to_rows
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.rewards import build_rewards

logger = logging.getLogger("grpo_math.train")


def main(argv: list[str]) -> None:
    train(load_recipe(argv))


def train(recipe: Recipe) -> dict:
    """Train as the recipe says and return what results.json holds: steps, before, after, seconds."""
    started = time.perf_counter()
    checkpoint = run_folder.find_checkpoint(recipe)
    rewards = build_rewards(recipe.rewards, recipe.template)
    configure(recipe.grading)

    from transformers import PrinterCallback  # torch loads here; every mistake in the recipe is found by now
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

    from grpo_math.callbacks import BeforeAfter, MetricsFile, Progress
    from grpo_math.trainer import StopStringTrainer

    config = trainer_config(recipe)
    if finished := run_folder.finished_results(recipe, checkpoint, config.max_steps):
        print(f"{recipe.output_dir}: already finished, {finished['steps']} steps")
        return finished
    run_folder.open_folder(recipe.output_dir)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading and saving

    tokenizer = load_tokenizer(recipe)
    problems = load_training_problems(recipe, tokenizer)
    check_enough(problems, config)
    held_out = load_eval_problems(recipe) if recipe.eval.before_after else []
    measured = BeforeAfter(recipe, tokenizer, held_out)
    model = ModelConfig(**recipe.model)
    make_trainer = GRPOTrainer
    if recipe.template.stop and not config.use_vllm:
        make_trainer = functools.partial(StopStringTrainer, stop=recipe.template.stop)
    with one_line(f"{recipe.source}: TRL refused it"):
        trainer = make_trainer(
            model=model.model_name_or_path,
            args=config,
            reward_funcs=rewards,
            train_dataset=to_dataset(problems, recipe.template, tokenizer),
            processing_class=tokenizer,
            callbacks=[measured, MetricsFile(recipe.output_dir), Progress()],
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
        )
    trainer.remove_callback(PrinterCallback)  # Progress speaks instead
    if trainer.is_world_process_zero():
        run_folder.write_facts(recipe, fingerprint(problems))

    training = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    trainer.save_model(str(recipe.output_dir / "final"))
    seconds = {"train": time.perf_counter() - training, "total": time.perf_counter() - started}

    results = collect_results(trainer.state.global_step, measured, seconds)
    if trainer.is_world_process_zero():
        (recipe.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        logger.info("run folder: %s (the model is in final/)", recipe.output_dir)
    return results


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
    with one_line(f"{recipe.source}: TRL refused it"):
        return GRPOConfig(**defaults | given | derived)


def load_training_problems(recipe: Recipe, tokenizer) -> list[Problem]:
    parts = []
    for spec in recipe.datasets:
        parts.append(load_problems(spec, length_filter(recipe.template, tokenizer, spec.max_prompt_tokens)))
        logger.info("training on %s", parts[-1])
    return mix(parts, [spec.weight for spec in recipe.datasets], seed=recipe.trainer.get("seed", 42))


def check_enough(problems: list[Problem], config) -> None:
    """TRL drops an incomplete generation batch: with fewer problems than one needs, no step would be made."""
    needed = config.generation_batch_size // config.num_generations
    if len(problems) < needed:
        raise UserError(
            f"dataset: {len(problems)} problems, but one generation batch takes {needed} (generation_batch_size "
            f"{config.generation_batch_size} / num_generations {config.num_generations}): lower "
            "per_device_train_batch_size or gradient_accumulation_steps, or give more problems"
        )


def to_dataset(problems: list[Problem], template: PromptTemplate, tokenizer):
    """The prompt-only dataset that TRL trains on."""
    from datasets import Dataset
    from pyarrow import ArrowInvalid, ArrowTypeError

    try:
        return Dataset.from_list(to_rows(problems, template, tokenizer))
    except (ArrowInvalid, ArrowTypeError) as error:
        raise UserError(f"dataset: a column has values of several types ({error}): make them one type") from error


def collect_results(steps: int, measured, seconds: dict[str, float]) -> dict:
    """What results.json holds. The seconds are this process's, and evaluating is not training."""
    found = {"before": measured.before, "after": measured.after}
    found = {moment: asdict(evaluation) for moment, evaluation in found.items() if evaluation}
    seconds = {"train": seconds["train"] - measured.seconds, "evaluate": measured.seconds, "total": seconds["total"]}
    return {"steps": steps, **found, "seconds": {name: round(value, 2) for name, value in seconds.items()}}


if __name__ == "__main__":
    from grpo_math.__main__ import run

    run("train")
