"""The memory estimate of `grpo-math check` against the measured peak of real training steps.

usage: python benchmarks/memory.py [--model FOLDER]

Each row is a GRPO run of two steps in a process of its own; its peak is torch.cuda.max_memory_allocated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HIDDEN, LAYERS, VOCABULARY = 512, 12, 16_000  # 60 million parameters
CASES = {
    "full": {},
    "full, no checkpointing": {"gradient_checkpointing": False},
    "full, several passes": {"gradient_accumulation_steps": 2},
    "full, beta": {"beta": 0.04},
    "LoRA": {"use_peft": True},
    "LoRA, no checkpointing": {"use_peft": True, "gradient_checkpointing": False},
}
LENGTH = 256  # tokens of a completion


def make_policy(folder: Path, tokenizer) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=HIDDEN // 64, num_key_value_heads=HIDDEN // 64,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recipe(folder: Path, model: str, changes: dict) -> Path:
    import yaml

    keys = {
        "dataset": {"name": "gsm8k", "path": str(folder)},
        "rewards": {"long": {"path": f"{folder}/long.py:long"}},
        "model_name_or_path": model,
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "max_completion_length": LENGTH,
        "generation_kwargs": {"min_new_tokens": LENGTH},
        "bf16": True,
        "save_strategy": "no",
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def measure(model: str, changes: dict) -> tuple[float, float]:
    """Measured peak and estimate, in bytes, of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = {"question": "What is 2+2? " * 10, "answer": "2+2=4\n#### 4"}
        (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 8)
        (folder / "long.py").write_text(
            "def long(completions, **_):\n    return [len(str(c)) % 7 / 7 for c in completions]\n"
        )
        path = write_recipe(folder, model, changes)
        command = [sys.executable, __file__, "--run", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        return tuple(json.loads(done.stdout.splitlines()[-1]))


def run(path: str) -> None:
    import torch

    from grpo_math.checks import memory
    from grpo_math.checks.findings import Subject
    from grpo_math.checks.machine import setting_of
    from grpo_math.recipe.recipe import load_recipe
    from grpo_math.train import train

    recipe = load_recipe(["--config", path, "--preflight", "false"])
    subject = Subject(recipe)
    setting = setting_of(subject)
    estimate = memory.peak(memory.items(subject.shape, setting), setting)
    train(recipe)
    print(json.dumps([torch.cuda.max_memory_allocated(), estimate]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a folder with a model, besides the made ones")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run)
        return
    import torch

    from grpo_math.quickstart import make_tokenizer

    if not torch.cuda.is_available():
        sys.exit("the estimate is for a GPU, and there is none")
    with tempfile.TemporaryDirectory() as name:
        make_policy(Path(name) / "60M", make_tokenizer(["What is 2+2? 0123456789"]))
        print("| model | run | estimate, GiB | measured, GiB | estimate / measured |\n|---|---|---|---|---|")
        for model in [f"{name}/60M", *arguments.model]:
            for case, changes in CASES.items():
                measured, estimated = (size / 2**30 for size in measure(model, changes))
                row = [Path(model).name, case, f"{estimated:.2f}", f"{measured:.2f}", f"{estimated / measured:.2f}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
