"""The runs in a folder and in its sweeps, the newest last: state, steps, accuracy before and after, latest reward."""

import argparse
import datetime
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.report.data import read_json, read_run

COLUMNS = ["run", "state", "steps", "accuracy", "reward", "started"]


def main(options: argparse.Namespace) -> None:
    from grpo_math.evaluation.tables import print_table

    folder = options.folder or Path("runs")
    if options.folder and not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name one with runs in it")
    if (folder / "recipe.yaml").exists():
        raise UserError(f"{folder}: is a run itself: grpo-math report {folder}, or name the folder that holds it")
    files = [file for runs in ("*", "*/seed-*", "*/*/seed-*") for file in folder.glob(f"{runs}/recipe.yaml")]
    found = sorted((path.parent for path in files), key=lambda path: (begun(path), path.name))
    if found:
        print_table(COLUMNS, [[str(path.relative_to(folder)), *row(path)] for path in found])
    else:
        print(f"no runs in {folder}: grpo-math train creates one in the recipe's output_dir")


def begun(folder: Path) -> datetime.datetime:
    """When the run was started, in local time; where it has not written that yet, when its recipe was written."""
    try:
        return datetime.datetime.fromisoformat(read_json(folder / "environment.json")["started"]).astimezone()
    except (KeyError, TypeError, ValueError):
        return datetime.datetime.fromtimestamp((folder / "recipe.yaml").stat().st_mtime).astimezone()


def row(folder: Path) -> list[str]:
    started = f"{begun(folder):%Y-%m-%d %H:%M}"
    try:
        run = read_run(folder)
    except UserError:
        return ["cannot be read: see grpo-math report", "", "", "", started]
    steps = f"{run.step}/{run.max_steps}" if run.max_steps else str(run.step)
    accuracies = " → ".join(f"{evaluation['accuracy']:.3f}" for evaluation in run.ends)
    rewards = run.series("reward")
    reward = f"{rewards[-1][1]:.3g}" if rewards else ""
    stopped = f", {run.results['stopped']}" if run.results.get("stopped") else ""
    return [f"{run.state}{stopped}", steps, accuracies, reward, started]
