"""The verb `check`: a recipe on its layout, checked in seconds, before a model is loaded."""

import argparse
import sys

from grpo_math.checks.findings import Subject
from grpo_math.checks.preflight import report
from grpo_math.launch.layouts import read_layout
from grpo_math.launch.plan import make_plan
from grpo_math.recipe.recipe import resolve


def main(options: argparse.Namespace) -> None:
    subject = subject_of(options)
    subject.samples = options.sample
    if not report(subject, options.json):
        sys.exit(1)


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
        sharded=layout.sharded,
        plan=lambda: make_plan(options, options.words),
    )
