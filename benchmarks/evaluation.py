"""Tokens a second of `grpo-math evaluate` on vLLM compared with vLLM's own offline engine.

usage: python benchmarks/evaluation.py MODEL DATA [--problems 64] [--tokens 128] [--runs 3] [--key value ...]

DATA is a folder in GSM8K's form. Both answer the same prompts greedily, in processes of their own, in turn; of each
prompt vLLM's engine generates as many tokens as the evaluation did, as `vllm bench throughput` does. Generation is
without start-up; the whole run is with it, and for the evaluation with grading and files. Further keys are a recipe's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spread import spread


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="(the process of vLLM's engine: the evaluation to repeat)")
    return parser


def words(given: argparse.Namespace, further: list[str]) -> list[str]:
    """The evaluation's, for the recipe too."""
    data = json.dumps({"name": "gsm8k", "path": given.data, "split": "test", "max_samples": given.problems})
    keys = ["--model_name_or_path", given.model, "--eval.datasets", data, "--use_vllm", "true"]
    return [*keys, "--eval.max_completion_length", str(given.tokens), *further]


def evaluation(given: argparse.Namespace, further: list[str], out: Path) -> tuple[int, float, float]:
    """Tokens, and seconds of generation and of the whole run."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "grpo_math", "evaluate", "--model", given.model, *words(given, further)[2:]]
    subprocess.run([*command, "--out", str(out)], check=True, stdout=sys.stderr)
    whole = time.perf_counter() - started
    rows = map(json.loads, (out / "completions.jsonl").read_text().splitlines())
    seconds = json.loads((out / "results.json").read_text())["evaluations"][0]["seconds"]
    return sum(row["length"] for row in rows), seconds, whole


def offline(given: argparse.Namespace, further: list[str]) -> None:
    """The completions of an evaluation once more, by `vllm.LLM`; writes the seconds of generation to offline.json."""
    from vllm import LLM, SamplingParams

    from grpo_math.evaluation.solve import load_benchmarks, prompts_of
    from grpo_math.generation import engine_arguments
    from grpo_math.models import load_tokenizer
    from grpo_math.recipe.recipe import load_recipe

    recipe = load_recipe(words(given, further), "evaluation")
    tokenizer = load_tokenizer(recipe.keys, recipe.template)
    prompts = prompts_of(load_benchmarks(recipe.eval_datasets)[0], recipe.template, tokenizer)
    rows = map(json.loads, (given.out / "completions.jsonl").read_text().splitlines())
    lengths = [row["length"] for row in sorted(rows, key=lambda row: row["problem"])]
    engine = LLM(
        model=given.model,
        max_model_len=max(map(len, prompts)) + given.tokens,
        **engine_arguments(recipe.keys, recipe.engine),
    )
    sampling = [SamplingParams(temperature=0, max_tokens=n, min_tokens=n, ignore_eos=True) for n in lengths]
    started = time.perf_counter()
    engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    (given.out / "offline.json").write_text(json.dumps(time.perf_counter() - started))


def main() -> None:
    given, further = parser().parse_known_args()
    if given.out:
        return offline(given, further)
    rates: dict[str, list[tuple[float, float]]] = {"grpo-math evaluate": [], "vLLM's engine": []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(given.runs):
            out = Path(folder, str(run))
            tokens, seconds, whole = evaluation(given, further, out)
            rates["grpo-math evaluate"].append((tokens / seconds, whole))
            command, started = [sys.executable, __file__, *sys.argv[1:], "--out", str(out)], time.perf_counter()
            subprocess.run(command, check=True, stdout=sys.stderr)
            whole, seconds = time.perf_counter() - started, json.loads((out / "offline.json").read_text())
            rates["vLLM's engine"].append((tokens / seconds, whole))
    print("| | generation, tokens/s | whole run, s |\n|---|---|---|")
    for name, found in rates.items():
        speed, whole = zip(*found, strict=True)
        print(f"| {name} | {spread(speed, ',.0f')} | {spread(whole, '.1f')} |")
    ratios = [mine / theirs for (mine, _), (theirs, _) in zip(*rates.values(), strict=True)]
    print(f"\nratio of pairs: {spread(ratios, '.2f')}")


if __name__ == "__main__":
    main()
