"""How often the current model solves each training problem: those it always or never solves teach nothing.

usage: grpo-math pass-rate --config recipes/X.yaml --out rates.parquet [--samples 8] [--model M] [--key value ...]

Samples at the training's temperature and top_p (top_k and penalties are not copied), up to its length, on the engine
that `grpo-math evaluate` takes. The folder rates/ beside rates.parquet keeps every completion; the same command again
goes on where the last one was interrupted. Then, in the recipe:

    dataset: {name: gsm8k, pass_rate: {file: rates.parquet, min: 0.1, max: 0.9}}
"""

import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from grpo_math.data.pass_rates import COLUMNS, key_of
from grpo_math.data.problems import Problem
from grpo_math.errors import UserError, run_cli
from grpo_math.evaluation.evaluate import describe, generate_all, how, interruptible, open_folder
from grpo_math.evaluation.server import uses_vllm
from grpo_math.evaluation.solve import Benchmark, graded, like_training, sampling_of
from grpo_math.generation.processes import supervised
from grpo_math.grading import configure
from grpo_math.models.models import end_tokens, load_tokenizer
from grpo_math.recipe.file import take, take_count
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.folder import only_one, quiet_progress_bars
from grpo_math.trainer.training import load_parts, mix_parts

BINS = 10  # between never and always
BAR = 40  # characters of the longest


def main(argv: list[str]) -> None:
    samples, argv = take_count(argv, "--samples", 8)
    options, words = take(argv, "--out")
    out = Path(options.get("--out", ""))
    if out.suffix != ".parquet":
        raise UserError("--out: want a file to write the pass rates to, such as rates.parquet")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder: give a file")
    recipe = load_recipe(["--model_name_or_path" if word == "--model" else word for word in words])
    recipe = like_training(recipe, samples)
    recipe = replace(recipe, datasets=[replace(spec, pass_rate=None) for spec in recipe.datasets])
    if not uses_vllm(recipe):
        measure(recipe, out)
    elif status := supervised(lambda: run_cli(lambda _: measure(recipe, out))):
        sys.exit(status)


def measure(recipe: Recipe, out: Path) -> None:
    configure(recipe.grading)
    quiet_progress_bars()
    tokenizer = load_tokenizer(recipe)
    problems = list({key_of(one): one for one in mix_parts(recipe, load_parts(recipe, tokenizer))}.values())
    benchmark = Benchmark("training", problems)
    sampling = sampling_of(recipe, end_tokens(recipe.model["model_name_or_path"]) | {tokenizer.eos_token_id})
    settings = describe(recipe, [benchmark], tokenizer, sampling)
    folder = open_folder(recipe, str(out.with_suffix("")), settings)
    print(f"{settings['model']}, {settings['engine']}, {how(sampling)}: {folder}", flush=True)
    with only_one(folder, "--out"), interruptible():
        rows, _ = generate_all(recipe, [benchmark], tokenizer, sampling, folder)
    right = Counter(row["problem"] for row in graded(rows, recipe) if row["correct"])
    found = [rate_of(problem, right[place], sampling.samples) for place, problem in enumerate(problems)]
    write(found, out)
    show(found, sampling.samples, recipe.trainer.get("num_generations", 8))
    plot(found, out)
    files = f"{out}, {out.with_suffix('.png').name}"
    print(f"\n{files}: dataset: {{pass_rate: {{file: {out}, min: 0.1, max: 0.9}}}} keeps what can teach")


def rate_of(problem: Problem, right: int, samples: int) -> dict:
    values = (key_of(problem), problem.question, problem.answer, samples, right, right / samples)
    return dict(zip(COLUMNS, values, strict=True))


def write(found: list[dict], out: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    new = out.with_name(f"{out.name}.new")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), new)
    new.replace(out)


def show(found: list[dict], samples: int, group: int) -> None:
    """The distribution as bars, and the share of the groups that will have an advantage."""
    size = max(1, math.ceil((samples - 1) / BINS))
    ranges = [(0, 0), *((low, min(low + size, samples) - 1) for low in range(1, samples, size)), (samples, samples)]
    counts = [sum(low <= one["correct"] <= high for one in found) for low, high in ranges]
    print(f"\n{f'right of {samples}':14}{'problems':>10}")
    for (low, high), count in zip(ranges, counts, strict=True):
        label = f"{low}" if low == high else f"{low}-{high}"
        print(f"{label:14}{count:>10,}  {'#' * round(BAR * count / max(counts))}".rstrip())
    mean = sum(one["pass_rate"] for one in found) / len(found)
    print(f"mean {mean:.3f}")
    if min(group, samples) > 1:
        teaching = sum(mixed(samples, one["correct"], min(group, samples)) for one in found) / len(found)
        print(f"{teaching:.0%} of the groups of {min(group, samples)} have completions right and wrong")


def mixed(samples: int, right: int, group: int) -> float:
    """The chance that `group` of the samples, drawn without replacement, are neither all right nor all wrong: an
    unbiased estimate of that of new ones, like pass@k's (Chen et al. 2021, arXiv:2107.03374)."""
    alike = math.comb(right, group) + math.comb(samples - right, group)
    return 1 - alike / math.comb(samples, group)


def plot(found: list[dict], out: Path) -> None:
    """A histogram beside the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    steps = found[0]["samples"]
    axes.hist([one["correct"] for one in found], bins=[step - 0.5 for step in range(steps + 2)], rwidth=0.9)
    axes.set_xlabel(f"right of {steps} completions")
    axes.set_ylabel("problems")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=150)
