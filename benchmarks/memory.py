"""The memory estimate of `grpo-math check` against the measured peak of real training steps.

usage: python benchmarks/memory.py [--model FOLDER]
       python benchmarks/memory.py --published

Each row is a GRPO run of two steps in a process of its own; its peak is torch.cuda.max_memory_allocated. `--published`
needs no GPU: it compares the estimate with the peaks that others have published for runs of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from grpo_math.checks.memory import GIB, NF4, Setting, Shape, items, peak

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

# parameters, those of the layers' linears, trained, layers, hidden, intermediate, queries, keys, vocabulary
LLAMA_7B = Shape(6_738_415_616, 6_476_005_376, 6_738_415_616, 32, 4096, 11008, 4096, 4096, 32_000)
LLAMA_13B = Shape(13_015_864_320, 12_687_769_600, 13_015_864_320, 40, 5120, 13824, 5120, 5120, 32_000)
LLAMA_70B = Shape(68_976_648_192, 68_451_041_280, 68_976_648_192, 80, 8192, 28672, 8192, 1024, 32_000)
LLAMA_8B = Shape(8_030_261_248, 6_979_321_856, 8_030_261_248, 32, 4096, 14336, 4096, 1024, 128_256)
QWEN_7B = Shape(7_721_324_544, 6_476_005_376, 7_721_324_544, 32, 4096, 11008, 4096, 4096, 151_936)
BF16 = Setting(2, True, False, None, True, False, None, batch=1, passes=1, sequences=0, length=1024)
LIT = replace(BF16, peft=True, checkpointing=False, passes=2, length=1304)
TUNE = replace(BF16, peft=True, batch=2, passes=2, length=2048)
QWEN = replace(BF16, peft=True, passes=8)
ZERO3 = replace(BF16, weight_bytes=4, peft=True, strategy="zero3", processes=8, batch=8, passes=4, length=2048)
FSDP2 = replace(BF16, weight_bytes=4, strategy="fsdp", processes=8, length=32768)
WHOLE = 10  # bytes per logit where a trainer keeps all of them: in 16 bits, in float32, and the float32 gradient
R8_Q, R8_8B, R8_70B, R64 = 4_194_304, 20_971_520, 103_546_880, 143_130_624  # weights of their adapters
PUBLISHED = [  # run, source, GB on a GPU, model, trained weights, setting, bytes per logit
    ("Llama-7B, all weights, AdamW", "torchtune #389", 54.0, LLAMA_7B, 0, BF16, 0),
    ("Llama-2-7B, LoRA, 1 x 1,304", "LitGPT", 21.30, LLAMA_7B, R8_Q, LIT, 0),
    ("Llama-2-7B, LoRA, 2 x 1,304", "LitGPT", 29.07, LLAMA_7B, R8_Q, replace(LIT, batch=2), 0),
    ("Llama-2-13B, LoRA, 1 x 1,304", "LitGPT", 38.12, LLAMA_13B, 6_553_600, LIT, 0),
    ("Llama-2-7B, NF4, LoRA, 1 x 1,304", "LitGPT", 14.14, LLAMA_7B, R8_Q, replace(LIT, linear_bytes=NF4), 0),
    ("Llama-3.1-8B, LoRA, 2 x 2,048", "torchtune", 16.2 * GIB / 1e9, LLAMA_8B, R8_8B, TUNE, 0),
    ("Llama-3.1-8B, NF4, LoRA, 2 x 2,048", "torchtune", 7.4 * GIB / 1e9, LLAMA_8B, R8_8B, replace(TUNE, linear_bytes=NF4), 0),
    ("Qwen-7B, LoRA, 1 x 256", "Qwen", 20.1, QWEN_7B, R64, replace(QWEN, length=256), WHOLE),
    ("Qwen-7B, LoRA, 1 x 8,192", "Qwen", 36.6, QWEN_7B, R64, replace(QWEN, length=8192), WHOLE),
    ("Qwen-7B, all weights, 2 GPUs, ZeRO-3, 1 x 256", "Qwen", 139.2 / 2, QWEN_7B, 0, replace(QWEN, peft=False, length=256, strategy="zero3", processes=2), WHOLE),
    ("Llama-2-70B, LoRA, 8 GPUs, ZeRO-3, 8 x 2,048", "PEFT", 64.0, LLAMA_70B, R8_70B, ZERO3, WHOLE),
    ("Llama-2-70B, LoRA, 8 GPUs, FSDP, 8 x 2,048", "PEFT", 76.0, LLAMA_70B, R8_70B, replace(ZERO3, strategy="fsdp"), WHOLE),
    ("Llama-3.1-8B, all weights, 8 GPUs, FSDP2, 1 x 32,768", "torchtitan", 83.9 * GIB / 1e9, LLAMA_8B, 0, FSDP2, WHOLE),
]  # fmt: skip


def published() -> list[tuple[str, float]]:
    """The rows of a Markdown table, and the ratio of each."""
    rows = []
    for run, source, measured, model, adapter, setting, whole in PUBLISHED:
        shape = replace(model, trained=adapter or model.parameters)  # 0: all
        ours = peak(items(shape, setting), setting) / 1e9
        with_logits = ours + whole * setting.batch * setting.length * model.vocabulary / 1e9
        ratio = with_logits / measured
        cells = [run, source, f"{measured:.1f}", f"{ours:.1f}", f"{with_logits:.1f}", f"{ratio:.2f}"]
        rows.append((f"| {' | '.join(cells)} |", ratio))
    return rows


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
    parser.add_argument("--published", action="store_true", help="compare with published peaks, without a GPU")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.published:
        print("| run | source | published, GB | estimate, GB | with its logits | ratio |\n|---|---|---|---|---|---|")
        print("\n".join(row for row, _ in published()))
        return
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
