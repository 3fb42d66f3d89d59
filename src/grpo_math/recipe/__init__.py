"""Read YAML and a command line into a checked `Recipe`, before anything heavy is imported.

Enters: a recipe's file or name, and overrides. Leaves: a `Recipe`, or a UserError with every problem; the JSON schema
and the help of all keys; the batch arithmetic. Imports errors, grading, data and rewards, TRL's keys as source text.
"""

from grpo_math.recipe.file import shipped
from grpo_math.recipe.recipe import Recipe, load_recipe, resolve

__all__ = ["Recipe", "load_recipe", "resolve", "shipped"]
