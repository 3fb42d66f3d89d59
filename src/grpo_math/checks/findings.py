"""What a preflight says, and what it looks at: a recipe, and whatever follows from it without loading a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from grpo_math.checks.memory import Shape, count_parameters, shape_of
from grpo_math.data.lengths import prompt_lengths
from grpo_math.data.problems import Problem, Problems
from grpo_math.errors import UserError
from grpo_math.evaluation.solve import Benchmark, load_benchmarks
from grpo_math.generation.vllm_engine import read_config
from grpo_math.models.models import load_tokenizer
from grpo_math.recipe.batch import world_size
from grpo_math.recipe.parts import NO_DATASET
from grpo_math.recipe.recipe import Recipe
from grpo_math.rewards.reward import Reward, build_rewards
from grpo_math.trainer.training import load_parts, mix_parts

LONG = 50  # questions of most characters, of which one has the most tokens
TOY = 10_000_000  # parameters: below, rules of thumb for language models say nothing


@dataclass(frozen=True)
class Finding:
    """`level` is error, warning or note; `says` what was seen, with its numbers; `fix` the recipe line to change."""

    level: str
    says: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.says}: {self.fix}" if self.fix else self.says


def error(says: str, fix: str = "") -> Finding:
    return Finding("error", says, fix)


def warning(says: str, fix: str = "") -> Finding:
    return Finding("warning", says, fix)


def note(says: str) -> Finding:
    return Finding("note", says)


@dataclass
class Subject:
    """A recipe under check. Everything else is made when a check first asks for it, and raises UserError by itself.

    `mistakes` are the recipe's own. `layout`, `processes` and `strategy` (what is sharded: none, zero2, zero3 or fsdp2)
    are those of a launch, and `plan` raises UserError for what would not work in it; a training that checks itself has
    none.
    """

    recipe: Recipe
    mistakes: list[str] = field(default_factory=list)
    layout: str = "none"
    plan: Callable[[], object] | None = None
    unreached: list[str] = field(default_factory=list)  # what is on the Hub, which does not answer
    strategy: str = "none"
    processes: int = field(default_factory=world_size)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.recipe)

    @cached_property
    def parts(self) -> list[Problems]:
        if not self.recipe.datasets:
            raise UserError(NO_DATASET)
        counted = any(spec.max_prompt_tokens for spec in self.recipe.datasets)
        return load_parts(self.recipe, self.tokenizer if counted else None)

    @cached_property
    def problems(self) -> list[Problem]:
        return mix_parts(self.recipe, self.parts)

    @cached_property
    def rewards(self) -> list[Reward | str]:
        """Copies of the training's: what an own function keeps between its calls stays as it was."""
        return build_rewards(self.recipe.rewards, self.recipe.template, self.recipe.max_completion_length)

    @cached_property
    def lengths(self) -> list[int]:
        """Of the prompts, in tokens, sorted."""
        return sorted(prompt_lengths(self.problems, self.recipe.template, self.tokenizer))

    @cached_property
    def longest(self) -> int:
        """The longest prompt in tokens; only those with the longest questions are tokenised."""
        candidates = sorted(self.problems, key=lambda problem: len(problem.question))[-LONG:]
        return max(prompt_lengths(candidates, self.recipe.template, self.tokenizer))

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        return load_benchmarks(self.recipe)

    @cached_property
    def model_config(self):
        return read_config(self.recipe)

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.model_config, self.recipe)

    @property
    def toy(self) -> bool:
        return count_parameters(self.model_config, self.recipe) < TOY
