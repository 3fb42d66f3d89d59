"""The set-ups people bring: each recipe carries their numbers, and runs through the command a person types."""

import json
import os
import subprocess
import sys

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


CPU = ["--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false", "--dataloader_pin_memory", "false"]
SHORT = ["--max_steps", "2", "--save_steps", "1"]
GRPO = [*CPU, *SHORT, "--use_vllm", "false", "--max_completion_length", "8", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]  # fmt: skip
EVAL = [
    "--eval.max_samples",
    "4",
    "--eval.every_steps",
    "1",
    "--eval.batch_size",
    "4",
    "--eval.max_completion_length",
    "8",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, policy_folder, problem_folder):
    """A folder to run in, with problems in the forms of GSM8K, MATH and the local JSON that people bring."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (problem_folder / f"{split}.jsonl").open()]
        golds = [row["answer"].rpartition("#### ")[2] for row in rows]
        math = [
            {"problem": row["question"], "solution": rf"It is $\boxed{{{gold}}}$."}
            for row, gold in zip(rows, golds, strict=True)
        ]
        own = [
            {"question": row["question"], "ground_truth": gold, "predicted_answer": "7", "correct": gold == "7"}
            for row, gold in zip(rows, golds, strict=True)
        ]  # fmt: skip
        qa = [{"question": row["question"], "answer": "Add the two numbers, for example $1 + 1 = 2$."} for row in rows]
        for name, lines in (("math", math), ("own", own), ("qa", qa)):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "gsm8k").symlink_to(problem_folder)
    (folder / "policy").symlink_to(policy_folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def launch(world, verb: str, recipe: str, *arguments: str, steps: int = 2) -> dict:
    """`accelerate launch … -m grpo_math.VERB --config recipes/RECIPE.yaml …` in the folder; all metrics, latest values."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "accelerate_configs" / "cpu.yaml"),
    ]
    command += ["-m", f"grpo_math.{verb}", "--config", f"recipes/{recipe}.yaml", *arguments]
    done = subprocess.run(
        command, cwd=world, capture_output=True, text=True, env=os.environ | {"WANDB_MODE": "offline"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = [json.loads(line) for line in (world / "runs" / recipe / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    assert (world / "runs" / recipe / "final").is_dir()
    return {name: value for row in metrics for name, value in row.items()}


def data(name: str, *, test: bool = True) -> list[str]:
    adapter = {"own": "json", "qa": "json"}.get(name, name)
    held_out = ["--eval.dataset.name", adapter, "--eval.dataset.path", name] if test else []
    return ["--dataset.name", adapter, "--dataset.path", name, *held_out]


TINY = ["--model_name_or_path", "policy"]
LORA = ["--use_peft", "--lora_r", "2"]


@pytest.mark.slow
def test_the_binary_run_and_its_two_comparison_runs(world):
    arguments = [*TINY, *data("gsm8k"), *CPU, *SHORT, *EVAL]
    row = launch(world, "train", "gsm8k_binary", *TINY, *data("gsm8k"), *GRPO, *EVAL)
    assert {"reward", "accuracy", "rewards/correctness/mean"} <= row.keys()
    assert list((world / "wandb").glob("offline-run-*"))
    for name in ("gsm8k_binary_sft", "gsm8k_binary_sft_answers"):
        assert launch(world, "sft", name, *arguments)["loss"] > 0


@pytest.mark.slow
def test_the_plus_minus_run_from_an_sft_checkpoint_on_peoples_own_json(world):
    launch(world, "sft", "sft_math", *TINY, *data("math"), *CPU, *SHORT, *EVAL)
    preset = "math_plusminus_small"
    row = launch(world, "train", preset, *data("own"), *GRPO, *EVAL)
    assert {"reward", "accuracy", "kl"} <= row.keys()
    assert -1.0 <= row["reward"] <= 1.0
    assert row["rewards/correctness/mean"] == -0.5  # a random policy boxes nothing
    again = [*data("own"), *GRPO, *EVAL, "--max_steps", "3", "--resume_from_checkpoint", f"runs/{preset}/checkpoint-2"]
    launch(world, "train", preset, *again, steps=3)


@pytest.mark.slow
def test_the_run_that_evaluates_all_along(world):
    launch(world, "sft", "sft_gsm8k", *TINY, *data("gsm8k"), *CPU, *SHORT, *LORA)
    start = ["--model_name_or_path", "runs/sft_gsm8k/final"]  # an adapter
    row = launch(world, "train", "math_dual_gpu", *start, *data("math"), *GRPO, *EVAL)
    assert row["kl"] >= 0
    assert {"accuracy", "format_accuracy"} <= row.keys()
    evaluations = [json.loads(line) for line in (world / "runs" / "math_dual_gpu" / "eval.jsonl").open()]
    assert [row["step"] for row in evaluations] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reinforce_with_baseline", "no_baseline", "grpo_clip"])
def test_the_r1_zero_study(world, name):
    row = launch(world, "train", f"r1_zero_{name}", *TINY, *data("math"), *GRPO, *EVAL)
    assert {"reward", "accuracy", "format_accuracy", "clip_ratio/region_mean"} <= row.keys()


@pytest.mark.slow
def test_the_qa_run_in_4_bits_with_lora_and_a_reward_model(world, tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    judge = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(judge).save_pretrained(world / "judge")
    tokenizer.save_pretrained(world / "judge")
    arguments = [*data("qa", test=False), *GRPO]
    row = launch(world, "train", "qa_heuristic_fast_test", *TINY, *arguments, "--rewards.judge.reward_model", "judge")
    parts = {f"heuristic/{part}" for part in ("length", "formulas", "concepts", "structure")}
    assert parts | {"rewards/judge/mean", "kl"} <= row.keys()
    assert all(0 <= row[part] <= 1 for part in parts)
    final = world / "runs" / "qa_heuristic_fast_test" / "final"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "policy"), final)
    plain = ["--load_in_4bit", "false", "--use_peft", "false", "--output_dir", "runs/qa_heuristic_low_memory"]
    launch(world, "train", "qa_heuristic_low_memory", *TINY, *arguments, *plain)
