"""How good a model is on held-out problems, with 95 % intervals over the problems.

The folder has results.json and completions.jsonl, which `grpo-math compare` reads.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from grpo_math.data import fingerprint
from grpo_math.errors import UserError, one_line, run_cli
from grpo_math.evaluation import watch
from grpo_math.evaluation.server import engine_for, uses_vllm
from grpo_math.evaluation.solve import (
    TOGETHER,
    Benchmark,
    graded,
    load_benchmarks,
    metrics_of,
    prompts_of,
    sampling_of,
    solve,
    summarise,
)
from grpo_math.evaluation.tables import Progress, print_tables
from grpo_math.generation.engines import Sampling, settings_of
from grpo_math.generation.processes import Stopped, supervised
from grpo_math.generation.vllm_engine import engine_arguments, model_dtype
from grpo_math.grading import configure
from grpo_math.models.models import end_tokens, load_tokenizer, weights_fingerprint
from grpo_math.recipe.file import read_yaml
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.folder import (
    append_rows,
    only_one,
    quiet_progress_bars,
    read_rows,
    versions,
    write_json,
    write_rows,
)

OF_EVAL = ("split", "max_samples", "samples", "temperature", "top_p", "k", "batch_size", "max_completion_length")
LOADING = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "attn_implementation")


def main(options: argparse.Namespace) -> None:
    if not (options.config or options.model or options.watch):
        raise UserError("say what to evaluate: --model M --dataset gsm8k, or --config recipes/X.yaml")
    if options.device and not options.watch:
        raise UserError("--device: only with --watch: here CUDA_VISIBLE_DEVICES says which GPUs are taken")
    if options.watch:
        watch.main(options, recipe_words(options))
        return
    recipe = load_recipe(recipe_words(options), "evaluation")
    if not uses_vllm(recipe):
        evaluate(recipe, options.out)
    elif status := supervised(lambda: run_cli(lambda _: evaluate(recipe, options.out))):
        sys.exit(status)


def recipe_words(options: argparse.Namespace) -> list[str]:
    """The keys of the recipe, those that this verb gives short names included."""
    words = list(options.words)
    if options.model:
        words += ["--model_name_or_path", options.model]
    if options.dataset:
        words += ["--eval.datasets", suite(options.dataset)]
    for name in OF_EVAL:
        if (value := getattr(options, name)) is not None:
            words += [f"--eval.{name}", f"[{value}]" if name == "k" else value]
    return words


def suite(value: str) -> str:
    """The datasets that --suite names, as YAML for `eval.datasets`."""
    if value.endswith((".yaml", ".yml")):
        content = read_yaml(Path(value), kind=list)
    else:
        parts = [part.strip().partition("=") for part in value.split(",")]
        content = [{"name": name, "path": path or None} for name, _, path in parts]
    return json.dumps(content)


def evaluate(recipe: Recipe, out: str | None = None) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("evaluate is one process: start it by itself, vLLM takes all visible GPUs")
    configure(recipe.grading)
    quiet_progress_bars()
    tokenizer = load_tokenizer(recipe)
    benchmarks = load_benchmarks(recipe.eval_datasets)
    name = recipe.model["model_name_or_path"]
    sampling = sampling_of(recipe, end_tokens(name) | {tokenizer.eos_token_id})
    settings = describe(recipe, benchmarks, tokenizer, sampling)
    folder = open_folder(recipe, out, settings)
    print(f"{name}, {settings['engine']}, {how(sampling)}: {folder}", flush=True)
    with only_one(folder, "--out"):
        finish(recipe, benchmarks, tokenizer, sampling, settings, folder)


def finish(
    recipe: Recipe,
    benchmarks: list[Benchmark],
    tokenizer,
    sampling: Sampling,
    settings: dict,
    folder: Path,
) -> None:
    """Generate what is missing, grade everything, and say and keep what was found."""
    with interruptible():
        rows, seconds = generate_all(recipe, benchmarks, tokenizer, sampling, folder)
    rows = graded(rows, recipe)
    unread = {row["gold"] for row in rows if row["correct"] is None}
    if unread:
        print(
            f"{len(unread):,} golds cannot be read and count as wrong, such as {min(unread, key=len)!r}: is this the "
            "right dataset?",
            file=sys.stderr,
        )
    write_rows(rows, folder / "completions.jsonl")
    found = [
        summarise([row for row in rows if row["dataset"] == one.title], one.title, 0, seconds.get(one.title, 0.0))
        for one in benchmarks
    ]
    if len(found) > 1:
        found.append(summarise(rows, TOGETHER, 0, sum(seconds.values())))
    results = {"settings": settings, "versions": versions(), "evaluations": [one.flat() for one in found]}
    results["metrics"] = metrics_of(found)
    results["right"] = {one.title: right_samples(rows, one) for one in benchmarks}
    print_tables(found, recipe.eval.k)
    write_json(results, folder / "results.json")
    print(f"\n{folder}: results.json, completions.jsonl")


@contextmanager
def interruptible() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def right_samples(rows: list[dict], benchmark: Benchmark) -> list[int]:
    """How many samples of each problem are right."""
    counts = [0] * len(benchmark.problems)
    for row in rows:
        if row["dataset"] == benchmark.title:
            counts[row["problem"]] += row["correct"] is True
    return counts


def how(sampling: Sampling) -> str:
    if sampling.temperature == 0:
        return "greedy"
    return f"{sampling.samples} samples at temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"


def describe(recipe: Recipe, benchmarks: list[Benchmark], tokenizer, sampling: Sampling) -> dict:
    """Everything the completions depend on; two evaluations are comparable where nothing but the model differs."""
    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    vllm = uses_vllm(recipe)
    dtype = engine_arguments(recipe)["dtype"] if vllm else model_dtype(recipe, recipe.model.get("dtype", "float32"))
    return {
        "model": name,
        "weights": weights_fingerprint(name, revision),
        "engine": f"{'vLLM' if vllm else 'transformers'} {dtype}",
        "batch_size": None if vllm else recipe.eval.batch_size,
        "prompt_template": {**asdict(recipe.template), "stop": list(recipe.template.stop)},
        "sampling": settings_of(sampling),
        "seed": recipe.trainer.get("seed", 42),
        "loading": {key: recipe.model.get(key) for key in LOADING} | {"engine": recipe.engine if vllm else None},
        "datasets": {
            one.title: {"problems": len(one.problems), "fingerprint": fingerprint(one.problems)} for one in benchmarks
        },
        "prompts": digest([prompts_of(one, recipe.template, tokenizer) for one in benchmarks]),
    }


def digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def open_folder(recipe: Recipe, out: str | None, settings: dict) -> Path:
    """The folder of an evaluation with exactly these settings, begun before or new."""
    label = "-".join(Path(settings["model"]).parts[-2:]).strip("/-")
    folder = Path(out) if out else recipe.output_dir / "evaluate" / f"{label}-{digest(settings)[:8]}"
    file = folder / "settings.json"
    with one_line(f"--out: {folder}", "give another", (OSError, ValueError)):
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            if different := [key for key in settings if earlier.get(key) != settings[key]]:
                raise UserError(
                    f"--out: {folder} holds an evaluation with another {', '.join(different)}: give another"
                )
        elif any(folder.iterdir()):
            raise UserError(f"--out: {folder} holds something that is no evaluation: give another")
        write_json(settings, file)
    return folder


def generate_all(
    recipe: Recipe, benchmarks: list[Benchmark], tokenizer, sampling: Sampling, folder: Path
) -> tuple[list[dict], dict[str, float]]:
    """All rows, and the seconds spent now on each benchmark; a problem is written down as soon as it is finished."""
    file, seconds = folder / "completions.jsonl", {}
    rows = whole_problems(read_rows(file), sampling.samples)
    write_rows(rows, file)
    done = {one.title: {row["problem"] for row in rows if row["dataset"] == one.title} for one in benchmarks}
    missing = [one for one in benchmarks if len(done[one.title]) < len(one.problems)]
    if rows:
        print(f"going on with {sum(map(len, done.values())):,} problems finished before", flush=True)
    with engine_for(recipe, benchmarks, tokenizer, folder) if missing else nullcontext() as engine:
        for one in missing:
            progress = Progress(one, len(done[one.title]))
            for new in solve(engine, one, recipe, tokenizer, sampling, done=done[one.title]):
                append_rows(new, file)
                rows += new
                progress.step(len(new) // sampling.samples)
            seconds[one.title] = progress.end()
    return rows, seconds


def whole_problems(rows: list[dict], samples: int) -> list[dict]:
    """Without the problems of which a killed run wrote only some samples."""
    count = Counter((row["dataset"], row["problem"]) for row in rows)
    return [row for row in rows if count[row["dataset"], row["problem"]] == samples]
