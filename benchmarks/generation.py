"""Tokens a second of vLLM against transformers: same prompts, same model, same number of tokens; and the weight sync.

usage: python benchmarks/generation.py MODEL [--completions 8 32 64 128] [--tokens 64] [--runs 5] [--dtype float32]

Each engine runs in a process of its own. As in GRPO, eight completions are sampled of each prompt, at temperature 1;
every one has exactly `--tokens` tokens. The first run of each size is a warm-up; of the others the median is shown, and
the spread. On a GPU the same command runs there (give --dtype bfloat16); a time then ends when the GPU is done, and the
weights are transferred from the GPU's memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from spread import spread

PROMPT = "Nora has 3 boxes with 4 pens each and buys {} more pens. How many pens does she have? Think step by step.\n"
GROUP = 8  # completions of one prompt


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--completions", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engine_kwargs", default="{}", help="further arguments of vLLM's LLM, as JSON")
    parser.add_argument("--engine", choices=["transformers", "vllm"], help="(the process of one engine)")
    return parser.parse_args()


def prompts(tokenizer, count: int) -> list[list[int]]:
    return [tokenizer(PROMPT.format(number // GROUP))["input_ids"] for number in range(count)]


def transformers_engine(given):
    """A function from a number of completions to a generation of that many."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=given.dtype).to(device).eval()

    def generate(count: int) -> None:
        batch = tokenizer.pad({"input_ids": prompts(tokenizer, count)}, return_tensors="pt").to(device)
        with torch.no_grad():
            model.generate(**batch, do_sample=True, max_new_tokens=given.tokens, min_new_tokens=given.tokens)

    return generate, None


def vllm_engine(given):
    """The same, and a function that brings all weights as TRL does."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    llm = LLM(
        model=given.model,
        dtype=given.dtype,
        max_model_len=given.tokens + 64,
        max_num_seqs=max(given.completions),
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.3,
        **json.loads(given.engine_kwargs),
    )
    sampling = SamplingParams(max_tokens=given.tokens, min_tokens=given.tokens, ignore_eos=True, logprobs=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = AutoModelForCausalLM.from_pretrained(given.model, dtype=given.dtype).to(device)

    def generate(count: int) -> None:
        llm.generate([{"prompt_token_ids": ids} for ids in prompts(tokenizer, count)], sampling, use_tqdm=False)

    def sync() -> None:
        model = llm.llm_engine.model_executor.driver_worker.model_runner.model
        for name, parameter in trained.named_parameters():
            model.load_weights([(name, parameter.data)])
        llm.reset_prefix_cache()

    return generate, sync


def seconds(work, runs: int, *arguments) -> list[float]:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(runs + 1):
        wait()
        started = time.perf_counter()
        work(*arguments)
        wait()
        times.append(time.perf_counter() - started)
    return times[1:]


def measure(given) -> None:
    generate, sync = (vllm_engine if given.engine == "vllm" else transformers_engine)(given)
    found = {count: seconds(generate, given.runs, count) for count in given.completions}
    print(json.dumps({"generate": found, "sync": seconds(sync, given.runs) if sync else None}), flush=True)


def main() -> None:
    given = options()
    if given.engine:
        return measure(given)
    found = {}
    for engine in ("transformers", "vllm"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--engine", engine], stdout=subprocess.PIPE)
        done.check_returncode()
        found[engine] = json.loads(done.stdout.splitlines()[-1])

    print(
        f"{given.model}, {given.dtype}, {given.tokens} tokens a completion, median of {given.runs} (slowest-fastest)\n"
    )
    print("| completions | transformers, tokens/s | vLLM, tokens/s | ratio |\n|---|---|---|---|")
    for count in map(str, given.completions):
        rates = {}
        for engine, result in found.items():
            per_run = [int(count) * given.tokens / run for run in result["generate"][count]]
            rates[engine] = per_run
        ratio = statistics.median(rates["vllm"]) / statistics.median(rates["transformers"])
        print(f"| {count} | {' | '.join(spread(found, ',.0f') for found in rates.values())} | {ratio:.2f} |")
    sync = found["vllm"]["sync"]
    print(f"\n| weight sync, s |\n|---|\n| {spread(sync)} |")


if __name__ == "__main__":
    main()
