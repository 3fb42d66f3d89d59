"""The memory estimate of `grpo-math check` against the measured peak of real training steps.

usage: python benchmarks/memory.py [--model FOLDER]

Each row is a GRPO run of two steps in a process of its own. On a GPU the peak is torch.cuda.max_memory_allocated of the
run; on a CPU it is the process's peak resident memory, less that of the same run with a policy of nearly no size, which
holds all that is not the model. On a CPU passes are in the weights' own precision.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES = {"nothing": (8, 1, 512), "60M": (512, 12, 16_000)}  # hidden size, layers, vocabulary
CASES = {
    "full": {},
    "full, no checkpointing": {"gradient_checkpointing": False},
    "full, several passes": {"gradient_accumulation_steps": 2},
    "full, beta": {"beta": 0.04},
    "LoRA": {"use_peft": True},
    "LoRA, no checkpointing": {"use_peft": True, "gradient_checkpointing": False},
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}  # what is freed goes back, as in CUDA's figure
LENGTH = 256  # tokens of a completion


def make_policy(folder: Path, hidden: int, layers: int, vocabulary: int, tokenizer) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)), hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recipe(folder: Path, model: str, changes: dict) -> Path:
    import torch
    import yaml

    on_cpu = not torch.cuda.is_available()
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
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
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
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC)
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

    recipe = load_recipe(["--config", path, "--no_preflight"])
    subject = Subject(recipe)
    setting = setting_of(subject)
    estimate = memory.peak(memory.items(subject.shape, setting), setting)
    train(recipe)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps([peak, estimate]))


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

    tokenizer = make_tokenizer(["What is 2+2? 0123456789"])
    with tempfile.TemporaryDirectory() as name:
        for shape, sizes in SHAPES.items():
            make_policy(Path(name) / shape, *sizes, tokenizer)
        on_gpu = torch.cuda.is_available()
        print("| model | run | estimate, GiB | measured, GiB | estimate / measured |\n|---|---|---|---|---|")
        nothing = (0.0, 0.0) if on_gpu else measure(f"{name}/nothing", {})
        for model in [f"{name}/60M", *arguments.model]:
            for case, changes in CASES.items():
                peak, estimate = measure(model, changes)
                measured, estimated = ((a - b) / 2**30 for a, b in zip((peak, estimate), nothing, strict=True))
                row = [Path(model).name, case, f"{estimated:.2f}", f"{measured:.2f}", f"{estimated / measured:.2f}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
