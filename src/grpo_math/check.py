"""The verb `check`: a recipe on its layout, checked in seconds, before a model is loaded."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from grpo_math.checks import Finding, Subject, report, run_checks
from grpo_math.launch.layouts import read_layout
from grpo_math.launch.plan import make_plan
from grpo_math.recipe.recipe import Recipe, resolve
from grpo_math.runs.folder import next_step

OF_A_LAUNCH = ("layout", "num_processes", "nodes", "node_rank", "main_process_ip", "main_process_port")


def main(options: argparse.Namespace) -> None:
    """Print the findings; the exit status is 1 if one of them is an error, with --strict also for a warning."""
    subject = subject_of(options)
    subject.samples = options.sample
    if not report(subject, options.json, options.strict):
        sys.exit(1)
    if not options.json:
        given = [(f"--{key}", getattr(options, key)) for key in OF_A_LAUNCH]
        words = [str(word) for key, value in given if value is not None for word in (key, value)]
        verb = "sft" if subject.recipe.sft else "train"
        next_step(*([verb] if options.layout == "none" else ["launch", *words]), *options.words)


def check(recipe: Recipe | str | Path, layout: str = "none", **overrides: Any) -> list[Finding]:
    """Run all checks of `grpo-math check`. No model is loaded.

    Args:
        recipe: The path of a recipe, the name of a shipped one, or a checked recipe.
        layout: A shipped layout, the path of an accelerate config, or `none`: one process on this machine.
        **overrides: Keys of the recipe to replace. Only with a path or a name.

    Returns:
        The findings, in the order of the checks. An empty list means that nothing was found.

    Raises:
        UserError: If there is no such recipe or layout.
    """
    if isinstance(recipe, Recipe):
        if overrides or layout != "none":
            raise TypeError("give the recipe's file, to check it with other keys or on a layout")
        subject = Subject(recipe)
    else:
        words = [word for key, value in overrides.items() for word in (f"--{key}", json.dumps(value))]  # JSON is YAML
        options = dict.fromkeys(OF_A_LAUNCH) | {"words": ["--config", str(recipe), *words], "layout": layout}
        subject = subject_of(argparse.Namespace(**options))
    return [finding for _, found in run_checks(subject) for finding in found]


def subject_of(options: argparse.Namespace) -> Subject:
    """The recipe on its layout. A mistake in either is a finding, but there has to be a recipe file."""
    recipe, mistakes = resolve(options.words)
    if options.layout == "none":
        return Subject(recipe, mistakes)
    layout = read_layout(options.layout)
    recipe, mistakes = resolve([*options.words, *layout.keys(recipe)])
    return Subject(
        recipe,
        mistakes,
        layout=options.layout,
        processes=layout.processes(options),
        strategy=layout.strategy,
        plan=lambda: make_plan(options),
    )
