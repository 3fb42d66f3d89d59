"""Finished runs compared with benchmarks/expected.yaml: what the headers of their recipes claim, as bounds."""

import dataclasses
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from grpo_math.errors import UserError, each
from grpo_math.evaluation.statistics import Figure
from grpo_math.evaluation.tables import print_table
from grpo_math.recipe.checking import Part
from grpo_math.recipe.entries import closest
from grpo_math.recipe.file import dotted, read_yaml, shipped
from grpo_math.recipe.recipe import resolve
from grpo_math.report import summary
from grpo_math.report.data import Run, is_number
from grpo_math.report.report import read_runs, recipe_diff

FILE = "benchmarks/expected.yaml"
LIMITS = {"min": "at least", "max": "at most"}
Bound = Annotated[dict[Literal["min", "max"], FiniteFloat], Field(min_length=1)]


class Expected(Part):
    """The hardware on which a recipe was measured, and the bounds of its metrics."""

    hardware: str
    metrics: dict[str, Bound]


def read_expected(path: Path | None = None) -> dict[str, Expected]:
    """By recipe. Without a path, those of this package."""
    path = path or shipped("benchmarks") / Path(FILE).name
    try:
        return TypeAdapter(dict[str, Expected]).validate_python(read_yaml(path))
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise UserError("\n".join(f"{path}: {where}: {what}" for where, what in found)) from None


def recipe_name(run: Run) -> str:
    """The recipe of the command that started the run, or else the name of its folder."""
    words = [part for word in run.environment.get("command") or [] for part in str(word).split("=", 1)]
    if "--config" not in words[:-1]:
        return "quickstart" if "quickstart" in words else run.name
    file = Path(words[words.index("--config") + 1])
    return (file.parent.name or run.name) if file.name == "recipe.yaml" else file.stem  # RUN/recipe.yaml is a run's


def figures(known: dict[str, Expected], run: Run) -> dict[str, Figure]:
    """What the run has of the metrics that are expected of its recipe. Raises UserError for a run that cannot be
    compared: it is not finished, or nothing is expected of its recipe, or it has no such metric."""
    name = recipe_name(run)
    if name not in known:
        raise UserError(f"{run.folder}: {FILE} has nothing for its recipe, {name}: it has {', '.join(known)}")
    if run.state != "finished":
        resume = dict(summary.commands(run))["Resume with"]
        raise UserError(f"{run.folder}: {summary.state(run)}: only a finished run can be checked: {resume}")
    values = {key: value for key, value in dotted(run.results) if is_number(value)}
    if absent := [metric for metric in known[name].metrics if metric not in values]:
        asked = ", ".join(f"{metric}{closest(metric, values)}" for metric in absent)
        raise UserError(f"{run.folder}: its results.json has no {asked}, as {FILE} expects of {name}")
    ends = ("", "_low", "_high")
    return {one: Figure(*(values.get(f"{one}{end}", values[one]) for end in ends)) for one in known[name].metrics}


def holds(bound: dict, figure: Figure) -> bool:
    """Not if the whole interval is outside."""
    return bound.get("min", -inf) <= figure.high and figure.low <= bound.get("max", inf)


def check(folders: list[Path]) -> bool:
    """Print a line per metric of each run, and return whether all bounds hold."""
    known, runs = read_expected(), read_runs(folders)
    all_hold = True
    for run, found in zip(runs, each(partial(figures, known), runs), strict=True):
        name, rows = recipe_name(run), []
        for metric, bound in known[name].metrics.items():
            figure, limits = found[metric], [f"{LIMITS[end]} {limit:,g}" for end, limit in bound.items()]
            all_hold &= (ok := holds(bound, figure))
            text = str(figure) if figure.low < figure.high else f"{figure.value:,.6g}"
            rows.append([metric, text, ", ".join(limits), "ok" if ok else "FAILED"])
        of = known[name].hardware
        measured = "" if run.hardware == of else f"; the bounds are those of {of}"
        print(f"{run.folder}: recipe {name}, {summary.state(run)}, on {run.hardware or 'unknown hardware'}{measured}")
        ours = yaml.safe_load(resolve(["--config", name])[0].dump())
        if own := recipe_diff([run, dataclasses.replace(run, recipe=ours)]):
            print(f"not as in the recipe: {', '.join(f'{key} {value}' for key, (value, _) in own.items())}")
        print_table(["metric", "found", "expected", ""], rows)
        print()
    return all_hold
