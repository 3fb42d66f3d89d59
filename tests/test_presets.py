"""The set-ups people bring: each recipe carries their numbers, and runs through the command a person types."""

import pytest
from conftest import ROOT

from grpo_math.recipe import Recipe, load_recipe


def shipped(name: str, *arguments: str) -> Recipe:
    return load_recipe(["--config", str(ROOT / "recipes" / f"{name}.yaml"), *arguments])


def numbers(recipe: Recipe) -> dict:
    """Every value of a recipe in one flat mapping; ours under the names of the YAML."""
    flat = {**recipe.trainer, **recipe.model, "baseline": recipe.baseline, "eval_every": recipe.eval.every_steps}
    for spec in recipe.rewards:
        flat[spec.name] = spec.params | {"weight": spec.weight, "scale": spec.scale, "bias": spec.bias}
    flat["template"] = recipe.template
    flat["dataset"] = recipe.datasets[0].name
    flat["prompts"] = (
        recipe.trainer["per_device_train_batch_size"]
        * recipe.trainer.get("gradient_accumulation_steps", 1)
        // recipe.trainer.get("num_generations", 1)
    )
    return flat


PLAIN = {"weight": 1.0, "scale": 1.0, "bias": 0.0}
BINARY = {
    "dataset": "gsm8k", "num_train_epochs": 5, "per_device_train_batch_size": 8, "learning_rate": 1.7e-5, "report_to": "wandb",
}  # fmt: skip
PLUSMINUS = {
    "correctness": {"correct": 1.0, "wrong": -1.0, "no_answer": -0.5} | PLAIN, "use_peft": True, "lora_r": 16,
    "lora_alpha": 32, "lora_dropout": 0.05, "beta": 0.05, "num_generations": 2, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4, "learning_rate": 5e-6, "temperature": 0.7, "top_p": 0.9,
    "model_name_or_path": "runs/sft_math/final",
}  # fmt: skip
STUDY = {
    "dataset": "math", "model_name_or_path": "Qwen/Qwen2.5-Math-1.5B", "r1_zero": PLAIN, "num_generations": 8,
    "learning_rate": 1e-5, "loss_type": "grpo",
}  # fmt: skip
ON_POLICY = STUDY | {"max_steps": 200, "prompts": 32, "eval_every": 5, "save_steps": 10}
QA = {
    "heuristic": {"length": 0.2, "formulas": 0.3, "concepts": 0.3, "structure": 0.2} | PLAIN, "beta": 0.1,
    "load_in_4bit": True, "use_peft": True,
}  # fmt: skip
PRESETS = {
    "gsm8k_binary": BINARY | {"prompts": 8, "num_generations": 4, "max_completion_length": 512, "correctness": {"correct": 1.0, "wrong": 0.0} | PLAIN | {"scale": 10}},
    "gsm8k_binary_sft": BINARY | {"prompts": 8},
    "gsm8k_binary_sft_answers": BINARY | {"prompts": 8},
    "math_plusminus": PLUSMINUS | {"dataset": "math", "max_completion_length": 2048},
    "math_plusminus_small": PLUSMINUS | {"max_completion_length": 512},
    "math_dual_gpu": {"num_generations": 4, "beta": 0.05, "learning_rate": 5e-7, "per_device_train_batch_size": 16, "prompts": 16, "project": "math-grpo", "report_to": "wandb", "r1_zero": PLAIN, "eval_every": 50, "model_name_or_path": "runs/sft_math/final"},
    "r1_zero_reinforce_with_baseline": ON_POLICY | {"baseline": "group", "scale_rewards": "group"},
    "r1_zero_no_baseline": ON_POLICY | {"baseline": "none", "scale_rewards": "none"},
    "r1_zero_grpo_clip": STUDY | {"max_steps": 4 * 200, "prompts": 128, "num_iterations": 4, "epsilon": 0.2, "eval_every": 4 * 5, "save_steps": 4 * 10},
    "qa_heuristic": QA | {"num_train_epochs": 3, "num_generations": 4, "prompts": 2, "per_device_train_batch_size": 2},
    "qa_heuristic_fast_test": QA | {"num_train_epochs": 1, "num_generations": 2, "prompts": 1, "per_device_train_batch_size": 1},
    "qa_heuristic_full_training": QA | {"num_train_epochs": 5, "num_generations": 8, "prompts": 4, "per_device_train_batch_size": 4},
    "qa_heuristic_low_memory": QA | {"num_train_epochs": 3, "num_generations": 2, "prompts": 1, "per_device_train_batch_size": 1},
    "qa_heuristic_from_sft": QA | {"num_train_epochs": 3, "num_generations": 4, "prompts": 2, "learning_rate": 5e-6, "model_name_or_path": "runs/sft_gsm8k/final"},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_carries_exactly_these_numbers(name):
    found = numbers(shipped(name))
    assert {key: found.get(key) for key in PRESETS[name]} == PRESETS[name]


def test_the_comparison_runs_differ_in_what_they_are_taught():
    assert shipped("gsm8k_binary_sft").sft.target == "worked"
    assert shipped("gsm8k_binary_sft_answers").sft.target == "answer"
    assert shipped("gsm8k_binary_sft").datasets[0].name == shipped("gsm8k_binary").datasets[0].name


def test_an_on_policy_step_trains_once_on_what_it_generated():
    """No `num_iterations`, no `steps_per_generation`: then the ratio is 1 and nothing is clipped."""
    assert (
        not {"num_iterations", "steps_per_generation", "generation_batch_size"}
        & shipped("r1_zero_no_baseline").trainer.keys()
    )
