"""A made-up run folder that looks like a real one: `python tests/make_run.py FOLDER` writes it for a person to look at."""

import json
import math
import random
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

NAMES = ("Ava", "Ben", "Cleo", "Dan", "June", "Nora")
GROUP = 8
RECIPE = {
    "dataset": {"name": "gsm8k"},
    "prompt_template": "boxed",
    "rewards": {"correctness": {"weight": 1.0}, "format": {"weight": 0.2}},
    "eval": {"before_after": True, "every": 20},
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "num_generations": GROUP,
    "learning_rate": 1e-6,
    "beta": 0.001,
}
ENVIRONMENT = {
    "command": ["grpo-math", "train", "--config", "recipes/gsm8k.yaml"],
    "git_revision": "0123456789abcdef",
    "dataset_fingerprint": "14eb883c049f093e",
    "python": "3.11.7",
    "platform": "Linux",
    "cpus": 16,
    "gpus": ["NVIDIA H100 80GB HBM3"],
    "processes": 1,
    "gpu_count": 2,
    "started": "2026-11-21T16:39:00+00:00",
    "packages": {"grpo-math": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
}


def make_run(
    folder: Path, steps: int = 40, *, finished: bool = True, speed: float = 1.0, seed: int = 0, **recipe
) -> Path:
    """A policy that learns `speed` times as fast as the usual one. `recipe` replaces keys; None leaves one out."""
    draw = random.Random(seed)
    (folder / "completions").mkdir(parents=True)
    keys = {key: value for key, value in (RECIPE | {"max_steps": 40} | recipe).items() if value is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
    write_json(folder / "environment.json", ENVIRONMENT)
    skill = [0.15 + 0.75 / (1 + math.exp(-speed * (step - 18) / 5)) for step in range(steps + 1)]
    metrics, evaluations = [], []
    for step in range(steps + 1):
        if step:
            groups = [group(draw, skill[step], step) for _ in range(4)]
            rows = [row for one in groups for row in one]
            write_parquet(folder / f"completions/completions_{step:05d}.parquet", rows)
            metrics.append(measured(draw, rows, step))
        if step % 20 == 0 and "eval" in keys:
            rows = held_out(random.Random(step), skill[step])
            write_parquet(folder / f"completions/eval-{step:06d}.parquet", rows)
            evaluations.append(evaluated(rows, step))
            metrics.append({"step": step, "epoch": step / 100, "eval/accuracy": evaluations[-1]["accuracy"]})
    write_rows(folder / "metrics.jsonl", metrics)
    write_rows(folder / "eval.jsonl", evaluations)
    says = "KL 1.2 from the reference model, above 1: lower learning_rate, or raise beta"
    raised = [{"step": 31, "alarm": "kl", "says": says, "level": "alarm"}]
    raised += [{"step": 35, "alarm": "solved", "says": "95% of the completions are right", "level": "note"}]
    write_rows(folder / "alarms.jsonl", raised if steps > 31 else [])
    if finished:
        moments = {"before": evaluations[0], "after": evaluations[-1]} if evaluations else {}
        seconds = {"train": 300.0, "evaluate": 24.0, "total": 340.0}
        write_json(folder / "results.json", {"steps": steps, **moments, "seconds": seconds})
    return folder


def make_sft_run(folder: Path, steps: int = 30) -> Path:
    folder.mkdir(parents=True)
    keys = {"sft": {"solutions": True}, "dataset": {"name": "gsm8k"}, "model_name_or_path": "tiny", "max_steps": steps}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    rows = [
        {"step": step, "loss": 2 * math.exp(-step / 9), "mean_token_accuracy": 1 - 0.6 * math.exp(-step / 9), "entropy": 1 / step}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    write_rows(folder / "metrics.jsonl", rows)
    write_json(folder / "results.json", {"steps": steps, "seconds": {"train": 61.0, "evaluate": 0.0, "total": 65.0}})
    return folder


def problem(draw: random.Random) -> tuple[str, int]:
    a, b = draw.randint(1, 6), draw.randint(1, 4)
    return f"{NAMES[a % 6]} has {a} apples and gets {b} more. How many apples are that?", a + b


def attempt(draw: random.Random, gold: int, skill: float) -> dict:
    """A completion with its verdict: right, wrong, cut off or without an answer."""
    kind = "right" if draw.random() < skill else draw.choice(["wrong", "wrong", "cut", "none"])
    answer = {"right": str(gold), "wrong": str(gold + draw.choice([-2, -1, 1, 7]))}.get(kind)
    text = "First we count what is there, then we add what comes.\n" * (4 if kind == "cut" else 1)
    text += f"So the sum is $\\boxed{{{answer}}}$" if answer else "Perhaps it is"
    return {
        "completion": text,
        "length": len(text) // 4,
        "truncated": kind == "cut",
        "answer": answer,
        "correct": kind == "right",
        "how": "number" if answer else "no_answer",
    }


def group(draw: random.Random, skill: float, step: int) -> list[dict]:
    question, gold = problem(draw)
    rows = []
    for _ in range(GROUP):
        row = {
            "step": step,
            "question": question,
            "prompt": f"<|user|>{question}\n<|assistant|>",
            "solution": str(gold),
        }
        row |= attempt(draw, gold, skill)
        parts = {"rewards/correctness": float(row["correct"]), "rewards/format": float(row["answer"] is not None)}
        rows.append(row | parts | {"reward": parts["rewards/correctness"] + 0.2 * parts["rewards/format"]})
    mean = sum(row["reward"] for row in rows) / GROUP
    return [row | {"advantage": row["reward"] - mean} for row in rows]


def held_out(draw: random.Random, skill: float) -> list[dict]:
    problems, rows = random.Random(7), []
    for place in range(60):
        question, gold = problem(problems)
        row = {"dataset": "gsm8k test", "problem": place, "sample": 0, "question": question, "gold": str(gold)}
        row |= attempt(draw, gold, skill)
        rows.append(row | {"well_formed": row["answer"] is not None})
    return rows


def mean(rows: list[dict], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def measured(draw: random.Random, rows: list[dict], step: int) -> dict:
    groups = [rows[place : place + GROUP] for place in range(0, len(rows), GROUP)]
    times = {"time/generate": 4 + draw.random(), "time/rewards": 0.3, "time/train": 2 + draw.random() / 3}
    return {
        "step": step,
        "epoch": step / 100,
        "loss": draw.gauss(0, 0.02),
        "reward": mean(rows, "reward"),
        "rewards/correctness/mean": mean(rows, "correct"),
        "rewards/format/mean": mean(rows, "rewards/format"),
        "accuracy": mean(rows, "correct"),
        "kl": 0.002 * step**1.6 * (1 + draw.random() / 4),
        "entropy": 0.6 * math.exp(-step / 20) + draw.random() / 20,
        "frac_reward_zero_std": sum(len({row["reward"] for row in one}) == 1 for one in groups) / len(groups),
        "frac_tokens_zero_std": 0.25,
        "completions/distinct": 0.9,
        "rewards/correctness/variance_share": 0.8,
        "rewards/format/variance_share": 0.2,
        "completions/mean_length": mean(rows, "length"),
        "completions/clipped_ratio": mean(rows, "truncated"),
        "grad_norm": None if step == 5 else 0.4 + draw.random() / 5,
        "grading/no_answer": sum(row["answer"] is None for row in rows) / len(rows),
        "grading/timeouts": 0.0,
        "grading/crashed": 0.0,
        "tokens_per_second": 60 + 10 * draw.random(),
        **times,
        "step_time": sum(times.values()),
    }


def evaluated(rows: list[dict], step: int) -> dict:
    from grpo_math.evaluation.statistics import wilson_interval

    right = sum(row["correct"] for row in rows)
    low, high = wilson_interval(right, len(rows))
    figures = {
        "accuracy": right / len(rows),
        "accuracy_low": low,
        "accuracy_high": high,
        "length": mean(rows, "length"),
    }
    return {"dataset": "gsm8k test", "step": step, "problems": len(rows), "samples": 1, "seconds": 8.0, **figures}


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1])))
