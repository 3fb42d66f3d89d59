"""Learning per hour: one key of a recipe changed at a time, three seeds each; a table and a plot of the accuracy.

usage: python benchmarks/learning.py quickstart OUT [--seeds 0 1 2] [--only loss_type beta ...]
       python benchmarks/learning.py MODEL OUT [...]     a real model, on sums of reasoning-gym's chain_sum, each once
       python benchmarks/learning.py --plot PICTURE OUT  the table again, and the plot

OUT is a file of JSON lines, one a run; what it holds already is not run again. Every seed has its own problems and,
with the quickstart, its own policy. Seconds are CPU seconds of steps, without evaluations, so that they mean
something on a machine that has other work. `against the default` is the difference of the accuracies with a t-test over
the pairs of runs with the same seed (grpo_math.evaluation.statistics.over_seeds): it counts runs, not problems.
With so many comparisons, some p below 0.05 are chance.
"""

import argparse
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from watched import watch

from grpo_math.evaluation.statistics import over_seeds
from grpo_math.runs.folder import append_rows, read_rows, read_table, write_rows

STUDIES = {
    "loss_type": ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "scale_rewards": ["group", "batch", "none"],
    "num_generations": [4, 8, 16, 32],
    "beta": [0.0, 0.01, 0.04, 0.1],
    "num_iterations": [1, 2, 4],
    "learning_rate": [3e-5, 1e-4, 3e-4, 1e-3],
}
REAL_STUDIES = {
    "learning_rate": [1e-6, 1e-5, 3e-5],
    "beta": [0.0, 0.04],
    "use_vllm": [False, True],
}
DEFAULTS = {  # TRL's
    "loss_type": "dapo",
    "scale_rewards": "group",
    "num_generations": 8,
    "beta": 0.0,
    "num_iterations": 1,
    "learning_rate": 1e-6,
}
KEYS = list(STUDIES | REAL_STUDIES)
SUMS = {"params": {"task": "chain_sum", "size": 2000}, "config": {"max_terms": 2, "max_digits": 1}}
HELD_OUT = 100  # of 200 sums
BESIDE = {  # what a value wants as well
    ("loss_type", "cispo"): {"epsilon_high": 5.0},
    ("use_vllm", True): {
        "vllm_importance_sampling_correction": False,
        "vllm_max_model_length": 256,
        "vllm_engine_kwargs": {"enforce_eager": True},
    },
}
REAL = {  # what a recipe for sums says of a real model
    "prompt_template": {
        "chat": False,
        "stop": ["\n\n"],
        "user": "Question: What is 4 + 3?\nAnswer: 4 + 3 = \\boxed{7}\n\nQuestion: {question}\nAnswer:",
    },
    "rewards": {"correctness": {"weight": 1.0}, "format": {"weight": 0.5}},
    "eval": {"before_after": True, "every": 6, "batch_size": 100},
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "max_completion_length": 16,
    "max_steps": 24,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "use_vllm": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=KEYS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.model:
        studies = STUDIES if options.model == "quickstart" else REAL_STUDIES
        if unknown := set(options.only or []) - set(studies):
            parser.error(f"{', '.join(unknown)}: with this model there are {', '.join(studies)}")
        study(options, {key: studies[key] for key in options.only or studies})
    rows = read_rows(options.out)
    tell(rows)
    if options.plot:
        plot(rows, options.plot)


def study(options, studies: dict[str, list]) -> None:
    done = {(row["key"], row["value"], row["seed"]) for row in read_rows(options.out)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            recipe = prepared(options.model, Path(name), seed)
            for key, values in studies.items():
                for value in values:
                    default = recipe.get(key, DEFAULTS.get(key)) == value
                    run = ("default", "", seed) if default else (key, value, seed)
                    if run not in done:
                        changed = recipe | {key: value} | BESIDE.get((key, value), {})
                        with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # vLLM starts once a process
                            row = alone.submit(trained, changed, Path(name)).result()
                        row |= {"key": run[0], "value": run[1], "seed": seed, "defaults": DEFAULTS | recipe}
                        append_rows([row], options.out)
                        done.add(run)
                        print(
                            f"{key} {value} seed {seed}: {row['curve']}, boxed {row['boxed']}, {row['seconds']:.0f} s",
                            flush=True,
                        )


def prepared(model: str, folder: Path, seed: int) -> dict:
    """The recipe of a seed, its problems and policy made."""
    from grpo_math.data.prompts import TEMPLATES
    from grpo_math.quickstart import make_warm_policy, write_problems

    if model != "quickstart":
        write_sums(folder / "sums", seed)
        dataset = {"name": "gsm8k", "path": str(folder / "sums")}
        return REAL | {"dataset": dataset, "model_name_or_path": model, "seed": seed}
    recipe = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "quickstart.yaml").read_text())
    write_problems(folder / "arithmetic", seed)
    (folder / "policy").mkdir()
    make_warm_policy(folder / "policy", TEMPLATES["boxed"], seed)
    recipe["dataset"]["path"], recipe["model_name_or_path"] = str(folder / "arithmetic"), str(folder / "policy")
    recipe["eval"]["every"] = 2
    return recipe | {"seed": seed, "save_strategy": "no", "max_steps": 16}


def write_sums(folder: Path, seed: int) -> None:
    """In GSM8K's form; every sum once, and held out or not by the seed."""
    from grpo_math.data.loading import load_problems
    from grpo_math.data.problem import DatasetSpec

    sums = {
        problem.question: problem.answer
        for problem in load_problems(DatasetSpec(name="reasoning_gym", **SUMS)).problems
    }
    rows = [{"question": question, "answer": f"#### {answer}"} for question, answer in sorted(sums.items())]
    random.Random(seed).shuffle(rows)
    folder.mkdir()
    write_rows(rows[:HELD_OUT], folder / "test.jsonl")
    write_rows(rows[HELD_OUT:], folder / "train.jsonl")


def trained(recipe: dict, folder: Path) -> dict:
    """Accuracy by step, whether each held-out problem is right at the end, and what it cost."""
    from grpo_math.recipe.recipe import load_recipe
    from grpo_math.train import train

    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | {"output_dir": str(output), "completions": {"every": 1000}}))
    clock = make_clock()
    watch(lambda trainer: clock)
    train(load_recipe(["--config", str(file), "--preflight", "false"]))
    evaluations = read_rows(output / "eval.jsonl")
    last = evaluations[-1]["step"]
    right = [row["correct"] is True for row in read_table(output / "completions" / f"eval-{last:06d}.parquet")]
    return {
        "curve": {row["step"]: round(row["accuracy"], 4) for row in evaluations},
        "boxed": [round(row["format_accuracy"], 4) for row in evaluations],
        "right": [int(one) for one in right],
        "seconds": clock.seconds,
    }


def make_clock():
    """A callback that adds up the CPU seconds of steps, from a step's generation to its optimizer."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, *_, **__):
            self.begun = time.process_time()

        def on_optimizer_step(self, *_, **__):
            self.seconds += time.process_time() - self.begun

    return Clock()


def tell(rows: list[dict]) -> None:
    base = [row for row in rows if row["key"] == "default"]
    steps = list(base[0]["curve"])
    steps = [*steps[:3], steps[len(steps) // 2], steps[-1]] if len(steps) > 5 else steps
    head = " | ".join(f"step {step}" for step in steps)
    print(f"\n| key | value | {head} (least-most of seeds) | boxed at both ends | CPU s | against the default |")
    print("|---|---|" + "---|" * (len(steps) + 3))
    for key, value in dict.fromkeys((row["key"], row["value"]) for row in [*base, *rows]):
        runs = [row for row in rows if (row["key"], row["value"]) == (key, value)]
        values = [[run["curve"][step] for run in runs] for step in steps]
        cells = [f"{statistics.mean(found):.3f}" for found in values]
        cells[-1] += f" ({min(values[-1]):.3f}-{max(values[-1]):.3f})"
        cells.append(" and ".join(f"{statistics.mean(run['boxed'][at] for run in runs):.2f}" for at in (0, -1)))
        cells.append(f"{statistics.median(run['seconds'] for run in runs):.3g}")
        beside = {row["seed"]: row for row in base}
        pairs = [(beside[run["seed"]], run) for run in runs if key != "default" and run["seed"] in beside]
        cells.append(against(pairs) if len(pairs) > 1 else "")
        print(f"| {key} | {value} | {' | '.join(cells)} |")


def against(pairs: list[tuple[dict, dict]]) -> str:
    before, after = ([statistics.mean(run["right"]) for run in side] for side in zip(*pairs, strict=True))
    found = over_seeds(before, after, paired=True)
    seeds = ", ".join(f"{second - first:+.3f}" for first, second in zip(before, after, strict=True))
    return f"{found.verdict}: {found}; by seed {seeds}"


def plot(rows: list[dict], picture: Path) -> None:
    """Accuracy by step, a panel a key: the mean of the seeds, and their span."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = {row["key"] for row in rows}
    keys = [key for key in KEYS if key in known]
    across, down = min(3, len(keys)), math.ceil(len(keys) / 3)
    size = {"figsize": (4 * across, 3.2 * down), "squeeze": False, "layout": "constrained"}
    figure, panels = plt.subplots(down, across, sharex=True, sharey=True, **size)
    base = [row for row in rows if row["key"] == "default"]
    for panel, key in zip(panels.flat, keys, strict=False):
        panel.set_title(key)
        panel.grid(alpha=0.3)
        for value in sorted({base[0]["defaults"][key], *(row["value"] for row in rows if row["key"] == key)}):
            default = base[0]["defaults"][key] == value
            runs = base if default else [row for row in rows if (row["key"], row["value"]) == (key, value)]
            steps = [int(step) for step in runs[0]["curve"]]
            curves = list(zip(*(run["curve"].values() for run in runs), strict=True))
            middle = [statistics.mean(values) for values in curves]
            line = panel.plot(steps, middle, marker="o", ms=3, label=f"{value}{' (default)' if default else ''}")[0]
            panel.fill_between(steps, [*map(min, curves)], [*map(max, curves)], color=line.get_color(), alpha=0.12)
        panel.legend(fontsize=8)
    for panel in panels.flat[len(keys) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("held-out accuracy")
    for panel in panels[-1]:
        panel.set_xlabel("step")
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main()
