"""What the model will see: the first prompts of a recipe, with their token counts, and in SFT what it shall answer.
Loads the tokenizer only.

usage: grpo-math prompts --config recipes/X.yaml [--n 3] [--key value ...]
"""

from dataclasses import replace

from grpo_math.data.lengths import length_filter
from grpo_math.data.problems import load_problems
from grpo_math.data.prompts import token_ids
from grpo_math.models.models import load_tokenizer
from grpo_math.recipe.file import take_count
from grpo_math.recipe.recipe import load_recipe


def main(argv: list[str]) -> None:
    count, argv = take_count(argv, "--n", 3)
    recipe = load_recipe(argv)
    tokenizer = load_tokenizer(recipe)
    for spec in recipe.datasets:
        loaded = load_problems(
            replace(spec, max_samples=count), length_filter(recipe.template, tokenizer, spec.max_prompt_tokens)
        )
        for number, problem in enumerate(loaded.problems, 1):
            ids = token_ids(recipe.template.prompt(problem.question, tokenizer), tokenizer)
            print(f"--- {spec.title}, prompt {number}: {len(ids)} tokens, solution {problem.answer!r}")
            print(tokenizer.decode(ids))
            if recipe.sft:
                print(f"--- completion {number}\n{recipe.template.target(problem, recipe.sft.worked)}")
