"""grpo-math: GRPO on math problems.

usage: grpo-math VERB [--help]

  train       one GRPO run from a recipe
  sft         one SFT run, the warm start of a GRPO run
  check       is this run a good one? in seconds, before a model loads
  evaluate    accuracy, pass@k and maj@k on held-out problems, with intervals
  compare     evaluations on the same problems: is one model better?
  report      a run as one page: accuracy, curves, completions, recipe
  runs        the runs in a folder, with their state and accuracy
  grade       whether completions are right, and why
  rewards     the shipped rewards, or what a recipe's rewards give a text
  launch      train or sft on a layout of GPUs, with its vLLM server
  serve       the vLLM server alone
  export      a run as a plain checkpoint, its adapter merged
  quickstart  the whole job on a CPU in about two minutes
"""

import ast
import importlib.util
import os
import sys

from grpo_math import __version__
from grpo_math.errors import UserError, run_cli

VERBS = {
    "train": "train",
    "sft": "sft",
    "check": "check",
    "evaluate": "evaluation.evaluate",
    "compare": "evaluation.compare",
    "report": "report.report",
    "runs": "report.list_runs",
    "grade": "grading.grade_file",
    "rewards": "checks.show_rewards",
    "launch": "launch.launch",
    "serve": "launch.serve",
    "export": "models.export",
    "quickstart": "quickstart",
}


def dispatch(argv: list[str]) -> None:
    verb, *rest = argv or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(__doc__.strip())
    elif verb == "--version":
        print(f"grpo-math {__version__}")
    elif verb not in VERBS:
        raise UserError(f"no verb {verb!r}: use one of {', '.join(VERBS)}")
    elif {"--help", "-h"} & set(rest):
        print(usage(f"grpo_math.{VERBS[verb]}"))
    else:
        importlib.import_module(f"grpo_math.{VERBS[verb]}").main(rest)


def usage(module: str) -> str:
    """The module's docstring, without what importing it costs."""
    source = importlib.util.find_spec(module).loader.get_source(module)  # None where only .pyc files are installed
    return ast.get_docstring(ast.parse(source)) if source else importlib.import_module(module).__doc__.strip()


def run(verb: str) -> None:
    """`python -m grpo_math.VERB`, as accelerate launches it."""
    sys.exit(run_cli(dispatch, [verb, *sys.argv[1:]]))


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # on a terminal that knows no Unicode
    sys.path.insert(0, "")  # as `python -m` does: modules in the current folder can be named in a recipe
    try:
        return run_cli(dispatch)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
