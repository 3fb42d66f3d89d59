"""GRPO on math problems: one recipe, one command; or the same from Python.

    from grpo_math import train

    results = train("recipes/quickstart.yaml", learning_rate=2e-6)

`train`, `sft`, `evaluate` and `check` do what the command of that name does, on a recipe's file with keys replaced, or
on a recipe of `load_recipe`; `compare` and `grade` take no recipe. Each is imported when it is first used.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_math.check import check
    from grpo_math.evaluation.compare import compare
    from grpo_math.evaluation.evaluate import evaluate
    from grpo_math.grading import grade
    from grpo_math.recipe.recipe import load_recipe
    from grpo_math.sft import sft
    from grpo_math.train import train

__version__ = "0.1.0"
__all__ = ["check", "compare", "evaluate", "grade", "load_recipe", "sft", "train"]
HOMES = {
    "check": "check",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "grade": "grading",
    "load_recipe": "recipe.recipe",
    "sft": "sft",
    "train": "train",
}
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports missing 4-bit kernels for CPUs


class Package(ModuleType):
    """`grpo_math.train` is the function, also once the module of that name is imported; so are `sft` and `check`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in HOMES and isinstance(value, ModuleType)):  # a module that the import system sets
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"grpo_math.{HOMES[name]}"), name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *HOMES]


sys.modules[__name__].__class__ = Package
