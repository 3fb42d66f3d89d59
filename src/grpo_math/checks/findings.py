"""What a check reports, and what it looks at: a recipe and what follows from it without loading a model."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from grpo_math.checks.memory import Shape, shape_of
from grpo_math.data import Problem, Problems, load_parts, mix_parts, prompt_lengths
from grpo_math.errors import UserError
from grpo_math.evaluation import Benchmark, load_benchmarks
from grpo_math.models import ModelSource, Tools, load_tokenizer, load_tools
from grpo_math.recipe.batch import world_size
from grpo_math.recipe.entries import NO_DATASET
from grpo_math.recipe.recipe import Recipe
from grpo_math.rewards import Reward, build_rewards, data_columns
from grpo_math.trainer.config import check_hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainerState

LONG = 50  # questions with the most characters, among which the one with the most tokens is looked for


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: `error`, `warning` or `note`.
        says: What was found, with its numbers.
        fix: The line of the recipe to change, if there is one.
        check: The name of the check, such as `golds`.
    """

    level: str
    says: str
    fix: str = ""
    check: str = ""

    def __str__(self) -> str:
        return f"{self.says}: {self.fix}" if self.fix else self.says


error, warning, note = (partial(Finding, level) for level in ("error", "warning", "note"))


@dataclass
class Subject:
    """A recipe to check. What is loaded from it is loaded when a check first uses it, and raises UserError itself; what
    is missing offline is named in the words of `check_hub`, so that it is reported once.

    `mistakes` are the recipe's own errors. The rest is that of a launch: its layout's name, the number of processes,
    its strategy (as in memory.Setting), and `plan`, which raises UserError for what cannot work. `samples` is
    the number of completions to show.
    """

    recipe: Recipe
    mistakes: list[str] = field(default_factory=list)
    layout: str = "none"
    processes: int = field(default_factory=world_size)
    strategy: str = "ddp"
    plan: Callable[[], object] | bool = False
    samples: int = 0

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        check_hub(self.recipe, ("model",))
        return load_tokenizer(self.recipe.keys, self.recipe.template, self.tools)

    @cached_property
    def tools(self) -> Tools | None:
        recipe = self.recipe
        return load_tools(recipe.tools, recipe.environment, recipe.trainer.get("max_tool_calling_iterations"))

    @cached_property
    def state(self) -> "TrainerState":
        """That of the first step, for rewards that read it."""
        from transformers import TrainerState

        return TrainerState(max_steps=max(1, self.recipe.trainer.get("max_steps", 0)), num_train_epochs=1, epoch=0.0)

    @cached_property
    def parts(self) -> list[Problems]:
        if not self.recipe.datasets:
            raise UserError(NO_DATASET)
        recipe = self.recipe
        check_hub(recipe, ("dataset",))
        tokenizer = None
        if any(spec.max_prompt_tokens for spec in recipe.datasets):
            with contextlib.suppress(UserError):  # the check of the prompt reports it
                tokenizer = self.tokenizer
        group = None if recipe.sft else recipe.num_generations
        return load_parts(recipe.datasets, recipe.template, tokenizer, recipe.eval_datasets, num_generations=group)

    @cached_property
    def problems(self) -> list[Problem]:
        return mix_parts(self.parts, self.recipe.datasets, self.recipe.trainer.get("seed", 42))

    @cached_property
    def rewards(self) -> list[Reward | str]:
        """Copies of the training's, so that the state of a reward function is not changed by a check."""
        return build_rewards(self.recipe.rewards, self.recipe.template, self.recipe.max_completion_length)

    @cached_property
    def columns(self) -> tuple[set[str], str]:
        """The data's columns that the rewards get, and a line on those that they do not get."""
        return data_columns(self.rewards, self.problems, every=self.recipe.environment is not None)

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths of the prompts in tokens, sorted."""
        return sorted(prompt_lengths(self.problems, self.recipe.template, self.tokenizer))

    @cached_property
    def longest(self) -> int:
        """The longest prompt in tokens; only the longest questions are tokenised."""
        candidates = sorted(self.problems, key=lambda problem: len(problem.question))[-LONG:]
        return max(prompt_lengths(candidates, self.recipe.template, self.tokenizer))

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        check_hub(self.recipe, ("dataset",))
        return load_benchmarks(self.recipe.eval_datasets)

    @cached_property
    def model_config(self) -> "PretrainedConfig":
        check_hub(self.recipe, ("model",))
        return ModelSource.of(self.recipe.keys).config()

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.model_config, self.recipe)
