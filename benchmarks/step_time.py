"""A GRPO step of a real model: TRL's defaults beside this project's settings.

usage: python benchmarks/step_time.py MODEL [--steps 5] [--prompts 8] [--tokens 128] [--only CASE ...] [--key value ...]

Eight completions of each prompt, of at most so many tokens, eight completions a pass; the same model, problems and
seed. The rows of TRL are benchmarks/bare_trl.py with GRPOConfig's own settings: transformers' generation, 16-bit
passes and, by default, gradient checkpointing; the others are `grpo_math.train`. Each row is a process of its own,
one after the other, that makes one step of warm-up before those that count; the spread is that of its steps. Rows
that this machine cannot run are left out. Further keys are TRL's, for all rows: `--bf16 false` on a CPU without
instructions for bfloat16.
"""

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path

from overhead import child, keys_of, on_gpu, write_data
from spread import spread

OURS = {"gradient_checkpointing": False}
VLLM = OURS | {"use_vllm": True, "vllm_max_model_length": 512}
CASES = {
    "TRL's defaults": {},
    "TRL without gradient checkpointing": {"gradient_checkpointing": False},
    "grpo-math, transformers": OURS,
    "grpo-math, vLLM": VLLM,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    options, further = parser.parse_known_args()
    common = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": options.prompts,
        "num_generations": 8,
        "max_completion_length": options.tokens,
        "max_steps": options.steps + 1,
        "seed": 0,
        **({} if on_gpu() else {"use_cpu": True, "dataloader_pin_memory": False}),
        **keys_of(further),
    }
    cases = [case for case in options.only if "vLLM" not in case or importlib.util.find_spec("vllm")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        for number, case in enumerate(cases):
            job = {"model": options.model, "folder": folder, "arguments": common | CASES[case]}
            found[case] = child("bare" if case.startswith("TRL") else "ours", job, number)
            print(f"{case}: {spread(found[case]['steps'][1:])} s", flush=True)
    print("\n| settings | a step, s | of the first | peak, GiB |\n|---|---|---|---|")
    first = statistics.median(found[cases[0]]["steps"][1:])
    for case, run in found.items():
        steps = run["steps"][1:]
        print(f"| {case} | {spread(steps)} | {statistics.median(steps) / first:.2f} | {run['peak']:.2f} |")


if __name__ == "__main__":
    main()
