"""Start the vLLM server that a recipe's training generates on.

usage: grpo-math serve --config recipes/X.yaml [--host 127.0.0.1] [--port 8000] [--key value ...]

`grpo-math launch` starts it itself; run it by hand where server and trainer are on different machines (see
docs/multi_node.md). The server takes the first vllm_tensor_parallel_size GPUs of CUDA_VISIBLE_DEVICES. Whoever reaches
its port can change its weights: open --host only to a network you trust.
"""

import os
import sys

from grpo_math.data import load_parts, load_problems, mix_parts
from grpo_math.errors import UserError
from grpo_math.generation.vllm_engine import check_vllm, fit_window, longest_sequence
from grpo_math.generation.vllm_server import ENVIRONMENT, check_port, program, server_words
from grpo_math.models.models import load_tokenizer
from grpo_math.recipe.recipe import Recipe, load_recipe


def main(argv: list[str]) -> None:
    options = {"--host": "127.0.0.1", "--port": "8000"}
    for name in options:
        if name in argv[:-1]:
            at = argv.index(name)
            options[name], argv = argv[at + 1], argv[:at] + argv[at + 2 :]
    recipe = load_recipe(argv, "GRPO")
    check_vllm()
    if not options["--port"].isdecimal():
        raise UserError(f"--port: want a number, got {options['--port']!r}")
    check_port(int(options["--port"]), "--port")
    words = server_words(recipe, needed_window(recipe), options["--host"], int(options["--port"]))
    print(" ".join(["vllm serve", *words]), flush=True)
    os.execve(sys.executable, [*program(), *words], os.environ | ENVIRONMENT)


def needed_window(recipe: Recipe) -> int:
    """The context the recipe's problems need, in tokens: all of them are tokenised."""
    tokenizer = load_tokenizer(recipe)
    parts = load_parts(recipe.datasets, recipe.template, tokenizer, recipe.eval_datasets)
    problems = mix_parts(parts, recipe.datasets, recipe.trainer.get("seed", 42))
    generated = [(problems, recipe.max_completion_length)]
    if recipe.eval.wanted:
        tests = [load_problems(spec).problems for spec in recipe.eval_datasets]
        generated += [(test, recipe.eval_completion_length) for test in tests]
    longest = longest_sequence(generated, recipe.template, tokenizer)
    return fit_window(recipe.trainer.get("vllm_max_model_length"), *longest)
