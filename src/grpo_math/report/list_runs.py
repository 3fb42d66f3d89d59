"""The runs in a folder, the newest last: state, steps, accuracy before and after, reward now."""

import argparse
import datetime
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.report.data import Run, read_json, read_run

COLUMNS = ["run", "state", "steps", "accuracy", "reward", "started"]


def main(options: argparse.Namespace) -> None:
    folder = options.folder or Path("runs")
    if options.folder and not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name one with runs in it")
    if (folder / "recipe.yaml").exists():
        raise UserError(f"{folder}: is a run itself: grpo-math report {folder}, or name the folder of runs it is in")
    found = sorted((path.parent for path in folder.glob("*/recipe.yaml")), key=lambda path: (begun(path), path.name))
    if not found:
        print(f"no runs in {folder}: grpo-math train makes one, in its recipe's output_dir")
        return

    from grpo_math.evaluation.tables import print_columns

    print_columns([COLUMNS, *map(row, found)])


def begun(folder: Path) -> float:
    """When the run began, or was last taken up again, in seconds since 1970."""
    started = read_json(folder / "environment.json").get("started")
    try:
        return datetime.datetime.fromisoformat(started).timestamp()
    except (TypeError, ValueError):  # an older run
        return (folder / "recipe.yaml").stat().st_mtime


def row(folder: Path) -> list[str]:
    when = datetime.datetime.fromtimestamp(begun(folder)).strftime("%Y-%m-%d %H:%M")
    try:
        run = read_run(folder)
    except UserError:
        return [folder.name, "recipe.yaml cannot be read", "", "", "", when]
    reward = run.series("reward")
    return [folder.name, run.state, steps(run), accuracies(run), f"{reward[-1][1]:.3g}" if reward else "", when]


def steps(run: Run) -> str:
    return f"{run.step}/{run.max_steps}" if run.max_steps else str(run.step)


def accuracies(run: Run) -> str:
    shown = [run.evaluations[0], run.evaluations[-1]] if len(run.evaluations) > 1 else run.evaluations
    return " → ".join(f"{evaluation['accuracy']:.3f}" for evaluation in shown)
