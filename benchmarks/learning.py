"""The learning study of a real model (docs/choosing.md): its problems and recipe, for `grpo-math sweep`.

usage: python benchmarks/learning.py MODEL FOLDER
       grpo-math sweep --config FOLDER/recipe.yaml --out FOLDER/sweep --one_at_a_time \
           --set learning_rate=1e-5,1e-6,3e-5 --set beta=0,0.04 --set use_vllm=false,true

The problems are the sums of reasoning-gym's chain_sum, each once, in GSM8K's form: 100 of 200 are held out.
"""

import random
import sys
from pathlib import Path

import yaml

from grpo_math.data.loading import load_problems
from grpo_math.data.problem import DatasetSpec
from grpo_math.runs.folder import write_rows

SUMS = {"params": {"task": "chain_sum", "size": 2000}, "config": {"max_terms": 2, "max_digits": 1}}
HELD_OUT = 100
RECIPE = {
    "prompt_template": {
        "chat": False,
        "stop": ["\n\n"],
        "user": "Question: What is 4 + 3?\nAnswer: 4 + 3 = \\boxed{7}\n\nQuestion: {question}\nAnswer:",
    },
    "rewards": {"correctness": {"weight": 1.0}, "format": {"weight": 0.5}},
    "eval": {"before_after": True, "every": 6, "batch_size": 100},
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "max_completion_length": 16,
    "max_steps": 24,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "seed": 0,
    "use_cpu": True,
    "use_vllm": False,
    "vllm_importance_sampling_correction": False,
    "vllm_max_model_length": 256,
    "vllm_engine_kwargs": {"enforce_eager": True},
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


def main(model: str, out: str) -> None:
    folder = Path(out)
    found = load_problems(DatasetSpec(name="reasoning_gym", **SUMS)).problems
    sums = {problem.question: problem.answer for problem in found}
    rows = [{"question": question, "answer": f"#### {answer}"} for question, answer in sorted(sums.items())]
    random.Random(0).shuffle(rows)
    (folder / "sums").mkdir(parents=True)
    write_rows(rows[:HELD_OUT], folder / "sums" / "test.jsonl")
    write_rows(rows[HELD_OUT:], folder / "sums" / "train.jsonl")
    keys = {"dataset": {"name": "gsm8k", "path": str(folder / "sums")}, "model_name_or_path": model}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys | RECIPE, sort_keys=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
