"""The keys of a recipe that are ours, part by part."""

import os
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from grpo_math.data.prompts import TEMPLATES, PromptTemplate
from grpo_math.data.sources import looks_local
from grpo_math.grading import PoolSettings
from grpo_math.recipe.checking import Part, validated
from grpo_math.recipe.hints import RENAMED, RENAMED_IN_EVAL

Alarm = Literal[
    "nan", "reward", "zero_std", "truncated", "entropy", "kl", "importance", "timeouts", "length", "spike",
    "composition", "diverged", "tools",
]  # fmt: skip


class SftSpec(Part):
    """The `sft:` part, which makes a recipe one for SFT."""

    example: ClassVar = "{target: worked}"

    target: Literal["worked", "answer"] = Field(
        default="worked", description="what the model learns to write: the worked solution, or the answer alone"
    )

    @property
    def worked(self) -> bool:
        return self.target == "worked"


class AlarmSpec(Part):
    """The `alarms:` part."""

    example: ClassVar = "{stop_on: [nan]}"

    stop_on: tuple[Alarm, ...] = Field(default=("nan",), strict=False, description="the alarms that stop the training")
    steps: int = Field(default=10, ge=1, description="the steps over which alarms other than nan average")
    kl: float = Field(default=1.0, ge=0, description="the KL divergence above which the alarm kl is raised")


class CompletionsSpec(Part):
    """The `completions:` part: which steps keep their completions in files."""

    example: ClassVar = "{every: 10}"

    every: int | None = Field(
        default=None,
        ge=0,
        description="keep the completions of every Nth step; 0: of none; null: of about 100 steps",
    )


class DynamicSamplingSpec(Part):
    """The `dynamic_sampling:` part."""

    example: ClassVar = "{rounds: 3}"

    rounds: int = Field(default=3, ge=2, description="the maximum number of generation rounds per batch")


class GradingSpec(Part):
    """The `grading:` part."""

    example: ClassVar = "{timeout: 2.0}"

    timeout: float = Field(default=PoolSettings.timeout, ge=0.1, description="time limit of one answer, in CPU seconds")
    memory_gib: float = Field(
        default=PoolSettings.memory_gib, ge=0.5, description="address space of a grading process, in GiB"
    )
    workers: int | None = Field(default=None, ge=1, description="grading processes; null: one per core")


class EvalSpec(Part):
    """The `eval:` part: which held-out problems, how they are sampled, and when."""

    example: ClassVar = "{before_after: true}"
    renamed: ClassVar = RENAMED_IN_EVAL

    before_after: bool = Field(default=False, description="evaluate before the first step and after the last")
    every: int | None = Field(default=None, ge=1, description="steps between evaluations; null: none in the training")
    best: bool = Field(default=False, description="keep the model whose accuracy interval has the highest lower end")
    stop_at: float | None = Field(
        default=None, gt=0, lt=1, description="stop when the lower end of the accuracy interval reaches this accuracy"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="N: stop when the mean accuracy of the last N evaluations is not above that of the N before",
    )
    datasets: list | dict | str | None = Field(
        default=None, description="held-out datasets, by name or as in `dataset`; null: `split` of the training dataset"
    )
    split: str = Field(default="test", description="the default split of the held-out datasets")
    max_samples: int | None = Field(default=None, ge=1, description="problems per dataset; null: all")
    samples: int = Field(default=1, ge=1, description="completions per problem")
    temperature: float = Field(default=0.0, ge=0, description="the sampling temperature; 0: greedy decoding")
    top_p: float = Field(default=1.0, gt=0, le=1, description="the probability mass of nucleus sampling")
    k: list[int] | None = Field(default=None, description="the values of k for pass@k; null: the powers of two")
    rewards: bool = Field(default=True, description="score the completions with the recipe's rewards too")
    batch_size: int = Field(
        default=32, ge=1, description="completions per batch without vLLM, and per call of a reward function"
    )
    max_completion_length: int | None = Field(
        default=None, ge=1, description="the longest completion, in tokens; null: that of the training"
    )

    @property
    def wanted(self) -> bool:
        """Whether the training evaluates at all."""
        return self.before_after or self.every is not None


class TemplateKeys(Part, PromptTemplate):
    """A user's own prompt template."""


class Ours(Part):
    """Keys of every recipe. Datasets, template and rewards are checked by entries.py: their keys depend on a name."""

    renamed: ClassVar = RENAMED

    extends: str | list[str] | None = Field(
        default=None,
        description="the recipe to start from: a file, or the name of a shipped recipe; a list: the first, "
        "overridden by the own keys of the others",
    )
    dataset: Any = Field(default=None, description="the training problems: one dataset, or a list of them")
    prompt_template: Any = Field(
        default="boxed", description=f"the prompt's template: {', '.join(TEMPLATES)}, or a mapping of your own"
    )
    eval: EvalSpec = Field(default=EvalSpec(), description="evaluation on held-out problems")
    grading: GradingSpec = Field(default=GradingSpec(), description="limits of the grading processes")
    alarms: AlarmSpec = Field(default=AlarmSpec(), description="the alarms of the training, and which of them stop it")
    preflight: bool = Field(default=True, description="check data, golds and rewards before the model is loaded")


class GrpoKeys(Ours):
    """Our keys of a GRPO recipe."""

    rewards: Any = Field(default=None, description="reward functions by name, each with its weight and settings")
    baseline: Literal["group", "none"] = Field(
        default="group", description="subtract a group's mean (GRPO), or nothing (REINFORCE)"
    )
    prompts_per_step: int | None = Field(
        default=None, ge=1, description="prompts per optimizer step over all processes; null: set by TRL's batch keys"
    )
    dynamic_sampling: DynamicSamplingSpec | None = Field(
        default=None,
        description="replace zero-std groups with groups of further prompts (DAPO); null: off",
    )
    vllm_engine_kwargs: dict[str, Any] = Field(default={}, description="additional arguments of vLLM's engine")
    completions: CompletionsSpec = Field(default=CompletionsSpec(), description="which completions are kept in files")
    tools: list[str] = Field(default=[], description="functions that the model may call, each FILE.py:FUNCTION")
    environment: str | None = Field(
        default=None, description="a class whose methods the model may call, FILE.py:CLASS; one instance per completion"
    )
    on_reward_error: Literal["stop", "skip"] = Field(
        default="stop", description="if a reward function fails: stop the training, or skip the completions"
    )


class SftKeys(Ours):
    """Our keys of an SFT recipe."""

    sft: SftSpec = Field(default=SftSpec(), description="marks the recipe as one for SFT")


def baseline_problems(keys: GrpoKeys, flat: dict) -> Iterator[str]:
    """`none` is plain REINFORCE, which nothing must normalise afterwards; its keys are set in `flat`."""
    if keys.baseline != "none":
        return
    if keys.dynamic_sampling:
        yield "dynamic_sampling: it drops zero-std groups, which have a gradient with baseline: none: leave it out"
    wanted = {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize"}
    for key, value in wanted.items():
        if flat.setdefault(key, value) != value:
            yield f"{key}: {flat[key]} normalises the rewards, which baseline: none does not: leave it out"


def prompt_template(given: Any, problems: list[str]) -> PromptTemplate | None:
    if isinstance(given, str) and given in TEMPLATES:
        return TEMPLATES[given]
    if not isinstance(given, dict):
        problems.append(
            f"prompt_template: unknown template {given!r}: use one of {', '.join(TEMPLATES)}, or a mapping with user: "
            "and answer_style:"
        )
        return None
    before = len(problems)
    keys = validated(TemplateKeys, given, "prompt_template.", problems)
    if "{question}" not in str(given.get("user", "{question}")):
        problems.append("prompt_template.user: has no {question}: put it where the question goes")
    if keys and "" in keys.stop:
        problems.append("prompt_template.stop: an empty string would end every completion immediately: leave it out")
    return None if len(problems) > before else PromptTemplate(**keys.model_dump())


def is_hub_id(name: str) -> bool:
    """Whether a model's or dataset's name is none of something local, what is missing there included."""
    return name.count("/") < 2 and not looks_local(name) and not os.path.exists(name)


def model_folder(path: str) -> str:
    """A run's folder means its final model; every other folder or Hub id means itself."""
    path = os.path.expanduser(path)
    final = os.path.join(path, "final")
    return final if os.path.isdir(final) and not os.path.exists(os.path.join(path, "config.json")) else path
