"""Check a recipe in seconds, before a model is loaded: data, golds, rewards, prompt, batch, memory, machine.

usage: grpo-math check --config recipes/X.yaml [--layout single_gpu] [--sample N] [--json] [--key value ...]

  --layout NAME    the layout to check for, as for grpo-math launch, with its --num_processes and --nodes; or `none`:
                   one process, on whatever is here
  --sample N       load the model too, sample a completion for each of N problems, and show them graded
  --json           for programs: {"ok": ..., "findings": [{number, check, level, says, fix}, ...]}

All checks run, whatever the others find. The exit status is 1 if any finds an error, else 0. A training runs the quick
ones by itself and stops on errors; --no_preflight leaves them out.
"""

import sys

from grpo_math.checks.findings import Subject
from grpo_math.checks.preflight import report
from grpo_math.launch.layouts import parse, read_layout
from grpo_math.launch.plan import make_plan
from grpo_math.recipe.file import take_count
from grpo_math.recipe.recipe import resolve


def main(argv: list[str]) -> None:
    argv, as_json = [word for word in argv if word != "--json"], "--json" in argv
    samples, argv = take_count(argv, "--sample", 0)
    subject = subject_of(argv)
    subject.samples = samples
    if not report(subject, as_json):
        sys.exit(1)


def subject_of(argv: list[str]) -> Subject:
    """The recipe on its layout. A mistake in either is a finding, but there has to be a recipe file."""
    options, arguments, _ = parse(argv)
    recipe, mistakes = resolve(arguments)
    if options.layout == "none":
        return Subject(recipe, mistakes)
    layout = read_layout(options.layout)
    recipe, mistakes = resolve([*arguments, *layout.keys(recipe)])
    return Subject(
        recipe,
        mistakes,
        layout=options.layout,
        processes=layout.processes(options),
        sharded=layout.sharded,
        plan=lambda: make_plan(options, arguments),
    )
