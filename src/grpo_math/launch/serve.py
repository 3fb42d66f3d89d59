"""Start the vLLM server that a recipe's training generates on (docs/multi_node.md)."""

import argparse
import os
import shlex
import sys

from grpo_math.checks import Subject
from grpo_math.generation import check_vllm, fit_window
from grpo_math.generation.vllm_server import ENVIRONMENT, PROGRAM, check_port, ready_by, server_words, start_up
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.folder import quiet_progress_bars
from grpo_math.trainer.config import longest_generated


def main(options: argparse.Namespace) -> None:
    quiet_progress_bars()
    recipe = load_recipe(options.words, "GRPO")
    check_vllm(recipe.keys)
    check_port(options.port, "--port")
    words = server_words(recipe.keys, recipe.engine, needed_window(recipe), options.host, options.port)
    print(shlex.join(["vllm", "serve", *words]), flush=True)
    if not options.dry_run:
        os.execve(sys.executable, [*PROGRAM, *words], os.environ | ENVIRONMENT | ready_by(start_up(recipe.keys)))


def needed_window(recipe: Recipe) -> int:
    """The context the recipe's problems need, in tokens: all of them are tokenised."""
    subject = Subject(recipe)
    benchmarks = subject.benchmarks if recipe.eval.wanted else []
    longest = longest_generated(recipe, subject.tokenizer, subject.problems, benchmarks, server=True)
    return fit_window(recipe.trainer.get("vllm_max_model_length"), *longest)
