"""The accuracy of a model on held-out problems, with 95 % intervals over the problems.

The output folder has results.json and completions.jsonl, which `grpo-math compare` reads, and evaluation.log.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_math.data import fingerprint
from grpo_math.errors import RewardError, UserError, one_line, run_cli
from grpo_math.evaluation import watch
from grpo_math.evaluation.engine import engine_for, uses_vllm
from grpo_math.evaluation.scoring import Scoring
from grpo_math.evaluation.solve import Benchmark, Setup, grade_rows, load_benchmarks, prompts_of, setup_of, solve
from grpo_math.evaluation.statistics import problems_show
from grpo_math.evaluation.summary import metrics_of, summarise_each
from grpo_math.evaluation.tables import print_tables
from grpo_math.generation import Stopped, engine_arguments, longest_sequence, supervised
from grpo_math.grading import configure
from grpo_math.models import ModelSource, end_tokens, load_tokenizer, load_tools
from grpo_math.recipe.batch import world_size
from grpo_math.recipe.file import read_yaml
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.checkpoints import Results, recipe_of
from grpo_math.runs.folder import (
    append_rows,
    next_step,
    only_one,
    quiet_progress_bars,
    read_rows,
    versions,
    write_json,
    write_rows,
)
from grpo_math.runs.logs import log_to, run_logging
from grpo_math.runs.progress import Bar

OF_EVAL = ("split", "max_samples", "samples", "temperature", "top_p", "k", "batch_size", "max_completion_length")
SHORT = {"model": "model_name_or_path", "dataset": "eval.datasets"} | {name: f"eval.{name}" for name in OF_EVAL}
LOADING = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "attn_implementation")


def main(options: argparse.Namespace) -> None:
    if not (options.config or options.model or options.watch):
        raise UserError("nothing to evaluate: give --model M --suite gsm8k, or --config recipes/X.yaml")
    if options.device and not options.watch:
        raise UserError("--device: only with --watch: set CUDA_VISIBLE_DEVICES to choose GPUs")
    words = [*options.words, *recipe_words(vars(options))]
    if options.watch:
        watch.main(options, words)
        return
    recipe = load_recipe(words, "evaluation")

    def work(_: list[str]) -> None:
        folder, results = run_evaluation(recipe, options.out)
        print_next(folder, results["settings"], options)

    if not uses_vllm(recipe.keys):
        work([])
    elif status := supervised(lambda: run_cli(work)):
        sys.exit(status)


def evaluate(model_or_recipe: str | Path, out: str | None = None, **overrides: Any) -> dict:
    """Evaluate a model on held-out problems, as `grpo-math evaluate` does.

    Args:
        model_or_recipe: A run, a checkpoint, an adapter, a folder or a Hub id; or a recipe (a .yaml file), whose model,
            data and prompt template are used.
        out: The folder of `results.json` and `completions.jsonl`. By default one below the recipe's `output_dir`, or
            in `runs/evaluate`. An unfinished evaluation with the same settings is continued.
        **overrides: Options of `grpo-math evaluate` and keys of a recipe:
            `evaluate("runs/x", dataset="gsm8k", samples=4, temperature=0.7)`.

    Returns:
        The content of `results.json`: `settings` and `versions`; `evaluations`, one mapping per dataset with accuracy,
            pass@k and maj@k in [0, 1] and their 95 % intervals; `metrics`, the same with one name each; `right`, the
            number of right completions of each problem, by dataset.

    Raises:
        UserError: For everything that is wrong with the settings, the data or the model, one line each.
    """
    named = "config" if str(model_or_recipe).endswith((".yaml", ".yml")) else "model"
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    given[named] = str(model_or_recipe)
    words = [word for key, value in given.items() if key not in SHORT for word in (f"--{key}", value)]
    return run_evaluation(load_recipe([*words, *recipe_words(given)], "evaluation"), out)[1]


def recipe_words(given: Mapping[str, str | None]) -> list[str]:
    """The keys of a recipe for those options that are shorter than its keys, as words of a command line."""
    words = []
    for option, key in SHORT.items():
        if (value := given.get(option)) is not None:
            value = suite(value) if option == "dataset" else f"[{value.strip('[]')}]" if option == "k" else value
            words += [f"--{key}", value]
    return words


def suite(value: str) -> str:
    """The datasets that --suite names, as YAML for `eval.datasets`."""
    if value.endswith((".yaml", ".yml")):
        content = read_yaml(Path(value), kind=list)
    else:
        parts = [part.strip().partition("=") for part in value.split(",")]
        content = [{"name": name, "path": path or None} for name, _, path in parts]
    return json.dumps(content)


def print_next(folder: Path, settings: dict, options: argparse.Namespace) -> None:
    """What to do with an evaluation: compare it with another one of the same problems next to it, if there is one; else
    evaluate the model that a run began with, or say how to get another one."""
    same = [
        file
        for file in folder.parent.glob("*/settings.json")
        if file.parent != folder
        and (file.parent / "results.json").exists()
        and json.loads(file.read_text(encoding="utf-8"))["datasets"] == settings["datasets"]
    ]
    began = recipe_of(Path(settings["model"])).get("model_name_or_path")
    if same:
        next_step("compare", max(same, key=lambda file: file.stat().st_mtime).parent, folder)
    elif began and Path(began).absolute() != Path(settings["model"]).absolute():
        given = {name: getattr(options, name) for name in SHORT} | {"model": began}
        names = {"dataset": "suite"}
        words = [word for name, value in given.items() if value for word in (f"--{names.get(name, name)}", value)]
        next_step("evaluate", *options.words, *words)
    else:
        print(f"to compare another model, evaluate it on the same problems: grpo-math compare {folder} ITS_FOLDER")


@run_logging()
def run_evaluation(recipe: Recipe, out: str | None) -> tuple[Path, dict]:
    """Generate what is missing, grade everything, print and keep the figures; returns the folder and what its
    results.json holds."""
    if world_size() > 1:
        raise UserError("evaluate runs in one process: start it without accelerate, vLLM uses all visible GPUs")
    configure(recipe.grading)
    quiet_progress_bars()
    keys, spec, template, length = recipe.keys, recipe.eval, recipe.template, recipe.eval_completion_length
    tools = load_tools(recipe.tools, recipe.environment, keys.get("max_tool_calling_iterations"))
    if not tools and trained_with_tools(keys["model_name_or_path"]):
        print("warning: trained with tools, evaluated without: give its recipe with --config", file=sys.stderr)
    tokenizer = load_tokenizer(keys, template, tools)
    benchmarks = load_benchmarks(recipe.eval_datasets)
    scoring = Scoring(recipe, benchmarks, tokenizer, in_training=False)
    ends = end_tokens(ModelSource.of(keys), tokenizer)
    setup = setup_of(spec, template, tokenizer, ends, length, keys.get("seed", 42), tools)
    settings = settings_of(recipe, benchmarks, setup)
    label = "-".join(Path(settings["model"]).parts[-2:]).strip("/-")
    folder = Path(out) if out else recipe.output_dir / "evaluate" / f"{label}-{digest(settings)[:8]}"
    open_folder(folder, settings)
    print(f"{settings['model']}, {settings['engine']}, {setup.sampling}: {folder}", flush=True)
    for line in scoring.left_out():
        print(line, file=sys.stderr)
    log_to(folder / "evaluation.log")
    with only_one(folder, "--out"):
        try:
            rows, seconds = generate(recipe, benchmarks, setup, folder)
        except (KeyboardInterrupt, Stopped):
            print("interrupted: run the same command to continue", file=sys.stderr)
            sys.exit(130)
        rows = grade_rows(rows, template)
        try:
            rows = scoring(rows)
        except RewardError as error:
            raise UserError(f"{error}, or evaluate without the rewards: --eval.rewards false") from error
        write_rows(rows, folder / "completions.jsonl")
        figures = figures_of(rows, benchmarks, seconds, spec.k)
        results = Results(settings=settings, versions=versions(), **figures)
        write_json(results, folder / "results.json")
    print(f"\n{folder}: results.json, completions.jsonl")
    return folder, results


def figures_of(
    rows: list[dict], benchmarks: list[Benchmark], seconds: dict[str, float], shown: list[int] | None
) -> dict:
    """The figures of graded rows, by dataset and together, also printed. `seconds` are those that generating took;
    `shown` are the k of pass@k in the tables."""
    unread = {row["gold"] for row in rows if row["correct"] is None}
    if unread:
        print(
            f"{len(unread):,} golds cannot be read and count as wrong, such as {min(unread, key=len)!r}: is this the "
            "right dataset?",
            file=sys.stderr,
        )
    found = summarise_each(rows, seconds)
    print_tables(found, shown)
    if found[0].samples == 1:
        for one in found:
            print(f"{one.dataset}: {problems_show(one.problems)}")
    right = {one.title: [0] * len(one.problems) for one in benchmarks}
    for row in rows:
        right[row["dataset"]][row["problem"]] += row["correct"] is True
    return {"evaluations": [one.flat() for one in found], "metrics": metrics_of(found), "right": right}


def settings_of(recipe: Recipe, benchmarks: list[Benchmark], setup: Setup) -> dict:
    """Everything the completions depend on, as JSON; two evaluations are comparable where only the model differs."""
    keys, vllm = recipe.keys, uses_vllm(recipe.keys)
    model = ModelSource.of(keys)
    dtype = engine_arguments(keys, recipe.engine)["dtype"] if vllm else model.dtype(keys.get("dtype", "float32"))
    settings = {
        "model": model.name,
        "weights": model.fingerprint(),
        "engine": f"{'vLLM' if vllm else 'transformers'} {dtype}",
        "batch_size": None if vllm else recipe.eval.batch_size,
        "prompt_template": setup.template.model_dump(),
        "sampling": asdict(setup.sampling),
        "seed": setup.seed,
        "loading": {key: keys.get(key) for key in LOADING} | {"engine": recipe.engine if vllm else None},
        "datasets": {
            one.title: {"problems": len(one.problems), "fingerprint": fingerprint(one.problems)} for one in benchmarks
        },
        "prompts": digest([prompts_of(one, setup.template, setup.tokenizer) for one in benchmarks]),
    }
    if setup.tools:
        named = [*recipe.tools, *filter(None, [recipe.environment])]
        settings["tools"] = {"named": named, "schemas": setup.tools.schemas, "max_calls": setup.tools.max_calls}
    return json.loads(json.dumps(settings, default=sorted))  # sets as sorted lists


def trained_with_tools(model: str) -> bool:
    """Whether the model is one of a run whose recipe names tools."""
    recipe = recipe_of(Path(model).resolve())
    return bool(recipe.get("tools") or recipe.get("environment"))


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def open_folder(folder: Path, settings: dict) -> None:
    """Make the folder of an evaluation with exactly these settings, unless it is there already."""
    file = folder / "settings.json"
    with one_line(f"--out: {folder}", "give another", (OSError, ValueError)):
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            if different := [key for key in settings if earlier.get(key) != settings[key]]:
                raise UserError(
                    f"--out: {folder} has an evaluation with another {', '.join(different)}: use another folder"
                )
        elif any(folder.iterdir()):
            raise UserError(f"--out: {folder} is not empty and not an evaluation: use another folder")
        write_json(settings, file)


def generate(
    recipe: Recipe, benchmarks: list[Benchmark], setup: Setup, folder: Path
) -> tuple[list[dict], dict[str, float]]:
    """All rows, and the seconds spent now on each benchmark. Problems are written to completions.jsonl as soon as they
    are solved; those that an interrupted evaluation wrote are kept."""
    file, samples = folder / "completions.jsonl", setup.sampling.samples
    seconds = {one.title: 0.0 for one in benchmarks}
    rows = read_rows(file)
    written = Counter((row["dataset"], row["problem"]) for row in rows)  # a killed run may lack some samples of one
    rows = [row for row in rows if written[row["dataset"], row["problem"]] == samples]
    write_rows(rows, file)
    done = {one.title: {row["problem"] for row in rows if row["dataset"] == one.title} for one in benchmarks}
    missing = [one for one in benchmarks if len(done[one.title]) < len(one.problems)]
    if rows:
        print(f"continuing after {sum(map(len, done.values())):,} problems finished before", flush=True)
    if not missing:
        return rows, seconds
    parts = [(one.problems, setup.sampling.max_new_tokens) for one in benchmarks]
    longest, log = longest_sequence(parts, setup.template, setup.tokenizer), folder / "vllm_server.log"
    with engine_for(recipe.keys, recipe.engine, setup.tokenizer, recipe.eval.batch_size, longest, log) as engine:
        for one in missing:
            title, count, started = one.title, len(one.problems), time.perf_counter()
            with Bar(title, count, "problems", len(done[title])) as bar:
                for new in solve(engine, one, setup, done=done[title]):
                    append_rows(new, file)
                    rows += new
                    bar.update(bar.done + len(new) // samples)
            seconds[title] = time.perf_counter() - started
            print(f"{title}: {count:,} problems in {seconds[title]:.0f} s", flush=True)
    return rows, seconds
