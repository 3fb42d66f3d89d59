"""What work costs as it grows: grading, preparing data, evaluating, a run's folder, and one process against two.

usage: python benchmarks/scale.py [grading data evaluation folder processes] [--model FOLDER]

Without names all parts; each takes a few minutes. Prompts are counted by the quickstart's tokenizer, or that of the
model in FOLDER. Figures are medians, with (fastest-slowest) of five runs after a warm-up, or of what the part says.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import yaml
from grading import gsm8k_like, prose
from spread import spread

from grpo_math.quickstart import make_policy, make_tokenizer, write_problems
from grpo_math.runs.folder import read_rows

RUNS = 5
RECIPE = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "quickstart.yaml").read_text())
HERE = Path(__file__).resolve()


def times(function, runs: int = RUNS) -> list[float]:
    """Seconds of each run, after a warm-up."""
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return found[1:]


def write_recipe(folder: Path, model: str | None, **changes) -> Path:
    """The quickstart's, with a policy of its size from nothing, or `model`."""
    write_problems(folder / "arithmetic", seed=0)
    if model is None:
        texts = [text for row in read_rows(folder / "arithmetic" / "train.jsonl") for text in row.values()]
        tokenizer = make_tokenizer(texts)
        policy = make_policy(tokenizer)
        policy.config.max_position_embeddings = 1_024  # the questions here are longer than the quickstart's
        policy.save_pretrained(folder / "policy")
        tokenizer.save_pretrained(folder / "policy")
    paths = {"dataset": {"name": "gsm8k", "path": str(folder / "arithmetic")}, "output_dir": str(folder / "run")}
    paths["model_name_or_path"] = model or str(folder / "policy")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | paths | changes))
    return path


def grading(folder: Path, model: str | None) -> None:
    """100 completions a batch. The median and the spread are those of the tenths of one pass."""
    from grpo_math.grading import grade_batch

    def batch(rng: random.Random) -> tuple[list[str], list[str]]:
        golds, answers = zip(*(gsm8k_like(rng) for _ in range(100)), strict=True)
        return [f"{rng.choice(texts)} The answer is $\\boxed{{{answer}}}$." for answer in answers], list(golds)

    rng, process = random.Random(0), psutil.Process()
    texts = [prose(rng, rng.randint(50, 200)) for _ in range(10_000)]
    grade_batch(*batch(rng), "boxed")
    print("| completions graded | microseconds each | MiB of the process | MiB of its workers |\n|---|---|---|---|")
    for size in (1_000, 10_000, 100_000, 1_000_000):
        tenths = [0.0] * 10
        for place in range(size // 100):
            made = batch(rng)
            start = time.perf_counter()
            grade_batch(*made, "boxed")
            tenths[place * 1_000 // size] += time.perf_counter() - start
        workers = sum(child.memory_info().rss for child in process.children(recursive=True))
        each = spread([seconds / size * 1e7 for seconds in tenths], ",.0f")
        print(f"| {size:,} | {each} | {process.memory_info().rss / 2**20:,.0f} | {workers / 2**20:,.0f} |", flush=True)


def write_rows(file: Path, count: int) -> None:
    """GSM8K-like: the quickstart's problems, in a story of 40 words and with a working of 40."""
    rng = random.Random(count)
    texts = [prose(rng, 40) for _ in range(10_000)]
    rows = read_rows(file.parent / "arithmetic" / "train.jsonl")
    with file.open("w") as lines:
        for number in range(count):
            row = rng.choice(rows)
            question = f"{rng.choice(texts)} {number}. {row['question']}"
            lines.write(json.dumps({"question": question, "answer": f"{rng.choice(texts)} {row['answer']}"}) + "\n")


def data(folder: Path, model: str | None) -> None:
    """All that a training does with problems before its model loads. One run each."""
    recipe = write_recipe(folder, model, eval={})
    # A training's tokenizer uses all cores; the quickstart, which is imported here, asks for one.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    print("| rows | MB | seconds | of it reading, with lengths | GiB at most |")
    print("|---|---|---|---|---|")
    for count in (10_000, 100_000, 1_000_000):
        file = folder / f"{count}.jsonl"
        write_rows(file, count)
        words = [sys.executable, str(HERE), "--prepare", str(recipe), str(file)]
        made = json.loads(subprocess.check_output(words, env=environment, text=True).splitlines()[-1])
        seconds = made["seconds"]
        print(
            f"| {count:,} | {file.stat().st_size / 1e6:,.0f} | {sum(seconds.values()):.1f} | {seconds['load']:.1f} "
            f"| {made['gib']:.1f} |",
            flush=True,
        )
        print(" ".join(f"{part} {value:.1f}" for part, value in seconds.items()), file=sys.stderr)
        file.unlink()


def prepare(recipe_file: str, rows: str) -> None:
    """One preparation, in a process of its own; the last line is its seconds and memory as JSON."""
    from grpo_math.checks import check_training
    from grpo_math.data.loading import load_parts, mix_parts
    from grpo_math.data.problem import fingerprint
    from grpo_math.data.prompts import to_dataset, to_rows
    from grpo_math.models import load_tokenizer
    from grpo_math.recipe.recipe import load_recipe

    keys = ["--dataset.path", rows, "--dataset.max_prompt_tokens", "1024"]
    recipe = load_recipe(["--config", recipe_file, *keys])
    tokenizer = load_tokenizer(recipe.keys, recipe.template)
    clock = [time.perf_counter()]
    parts = load_parts(recipe.datasets, recipe.template, tokenizer, recipe.eval_datasets)
    clock.append(time.perf_counter())
    problems = mix_parts(parts, recipe.datasets, seed=42)
    check_training(recipe, tokenizer, parts)
    clock.append(time.perf_counter())
    to_dataset(to_rows(problems, recipe.template, tokenizer))
    clock.append(time.perf_counter())
    fingerprint(problems)
    clock.append(time.perf_counter())
    names = ("load", "check", "dataset", "fingerprint")
    seconds = {name: end - start for name, start, end in zip(names, clock, clock[1:], strict=False)}
    print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


class Instant:
    """An engine that answers at once, one question after the other, as a server does."""

    def generate(self, prompts, seeds, sampling, done=frozenset()):
        from grpo_math.generation.engines import Completion

        for index in range(len(prompts)):
            yield {index: [Completion(f"So it is \\boxed{{{index % 50}}}", 12, False)] * sampling.samples}


def evaluation(folder: Path, model: str | None) -> None:
    """What is ours: prompts, grading, figures, files. The engine is a stand-in that answers at once."""
    from grpo_math.evaluation import evaluate
    from grpo_math.evaluation.solve import prompts_of
    from grpo_math.recipe.recipe import load_recipe

    recipe = load_recipe(["--config", str(write_recipe(folder, model)), "--eval.datasets.name", "gsm8k"])
    evaluate.engine_for = lambda *_: contextlib.nullcontext(Instant())
    print("| problems | samples | seconds | ms a completion |\n|---|---|---|---|")
    for count, samples in ((1_000, 1), (10_000, 1), (10_000, 8)):
        file = folder / f"{count}.jsonl"
        write_rows(file, count)
        keys = {"datasets.path": file, "samples": samples, "temperature": 0.7 if samples > 1 else 0}
        words = [word for key, value in keys.items() for word in (f"--eval.{key}", str(value))]
        recipe = load_recipe(["--config", str(folder / "recipe.yaml"), "--eval.datasets.name", "gsm8k", *words])

        def once(recipe=recipe) -> None:
            prompts_of.cache_clear()
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
                evaluate.run_evaluation(recipe, f"{out}/one")

        found = times(once)
        each = statistics.median(found) / count / samples * 1e3
        print(f"| {count:,} | {samples} | {spread(found, ',.2f')} | {each:.2f} |", flush=True)


def folder(folder: Path, model: str | None) -> None:
    """The files that grow with the steps, filled with the last log of a training of three steps."""
    from transformers import TrainerControl, TrainerState

    from grpo_math.recipe.recipe import load_recipe
    from grpo_math.report.report import write_report
    from grpo_math.train import train
    from grpo_math.trainer.callbacks import MetricsFile

    words = ["--max_steps", "3", "--eval.before_after", "false", "--save_strategy", "no"]
    with contextlib.redirect_stdout(sys.stderr):
        train(load_recipe(["--config", str(write_recipe(folder, model)), *words]))
    run = folder / "run"
    logs = read_rows(run / "metrics.jsonl")[-1]
    logs.pop("step")
    print("| steps | metrics.jsonl, MB | trainer_state.json, MB | writing it, ms | report, s |\n|---|---|---|---|---|")
    for steps in (1_000, 10_000, 100_000):
        state, callback = TrainerState(max_steps=steps), MetricsFile(run)
        callback.path.unlink()
        for step in range(1, steps + 1):
            state.global_step = step
            state.log_history.append({**logs, "step": step})
            callback.on_log(None, state, TrainerControl(), logs)
        file = folder / "trainer_state.json"
        written = [1e3 * seconds for seconds in times(lambda: state.save_to_json(str(file)))]  # noqa: B023
        report = times(lambda: write_report([run]))
        size = [path.stat().st_size / 1e6 for path in (callback.path, file)]
        print(
            f"| {steps:,} | {size[0]:,.1f} | {size[1]:.3f} | {spread(written, ',.2f')} | {spread(report, ',.1f')} |",
            flush=True,
        )


def processes(folder: Path, model: str | None) -> None:
    """A random policy, one thread a process, 64 completions per step. Median and spread are of 40 steps after ten."""
    recipe = write_recipe(folder, model, prompts_per_step=8, max_steps=50, save_strategy="no", eval={}, preflight=False)
    found = {}
    for count, layout in ((1, "cpu"), (2, "multi_gpu")):
        run = folder / f"run{count}"
        words = ["--layout", layout, "--config", str(recipe), "--num_processes", str(count), "--use_cpu", "true"]
        words += ["--per_device_train_batch_size", str(64 // count), "--output_dir", str(run)]
        command = [sys.executable, "-m", "grpo_math", "launch", *words]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=sys.stderr)
        found[count] = [row["step_time"] for row in read_rows(run / "metrics.jsonl") if "step_time" in row][10:]
    one, two = (statistics.median(found[count]) for count in (1, 2))
    print("| processes | seconds a step | times faster | efficiency |\n|---|---|---|---|")
    print(f"| 1 | {spread(found[1], ',.3f')} | 1 | 100 % |")
    print(f"| 2 | {spread(found[2], ',.3f')} | {one / two:.2f} | {one / two / 2:.0%} |")


PARTS = {part.__name__: part for part in (grading, data, evaluation, folder, processes)}


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        prepare(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--model", metavar="FOLDER")
    options = parser.parse_args()
    for name in options.parts or PARTS:
        print(f"\n## {name}\n")
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), options.model)


if __name__ == "__main__":
    main()
