"""Start the vLLM server that a recipe's training generates on (docs/multi_node.md)."""

import argparse
import os
import sys

from grpo_math.checks import Subject
from grpo_math.generation import check_vllm, fit_window, longest_sequence
from grpo_math.generation.vllm_server import ENVIRONMENT, PROGRAM, check_port, ready_by, server_words, start_up
from grpo_math.recipe.recipe import Recipe, load_recipe


def main(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.words, "GRPO")
    check_vllm(recipe.keys)
    check_port(options.port, "--port")
    words = server_words(recipe.keys, recipe.engine, needed_window(recipe), options.host, options.port)
    print(" ".join(["vllm serve", *words]), flush=True)
    os.execve(sys.executable, [*PROGRAM, *words], os.environ | ENVIRONMENT | ready_by(start_up(recipe.keys)))


def needed_window(recipe: Recipe) -> int:
    """The context the recipe's problems need, in tokens: all of them are tokenised."""
    subject = Subject(recipe)
    turns = 2 if subject.tools else 1  # TRL asks for as much again after each tool result
    tokenizer, generated = subject.tokenizer, [(subject.problems, turns * recipe.max_completion_length)]
    if recipe.eval.wanted:
        generated += [(one.problems, recipe.eval_completion_length) for one in subject.benchmarks]
    longest = longest_sequence(generated, recipe.template, tokenizer)
    return fit_window(recipe.trainer.get("vllm_max_model_length"), *longest)
