"""The keys of a recipe that are ours, part by part."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from grpo_math.data.prompts import TEMPLATES, PromptTemplate
from grpo_math.data.sources import FILE_TYPES, bare
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
    steps: int = Field(default=10, ge=1, description="steps that each alarm except nan looks back on")
    kl: float = Field(default=1.0, ge=0, description="the KL divergence from the reference model that is too much")


class CompletionsSpec(Part):
    """The `completions:` part: which steps keep their completions in files."""

    example: ClassVar = "{every: 10}"

    every: int | None = Field(
        default=None,
        ge=0,
        description="keep the completions of every so many steps; 0: of none; null: of about 100 steps of the run",
    )


class DynamicSamplingSpec(Part):
    """The `dynamic_sampling:` part."""

    example: ClassVar = "{rounds: 3}"

    rounds: int = Field(default=3, ge=2, description="the maximum of generation rounds per batch, the first included")


class GradingSpec(Part):
    """The `grading:` part."""

    example: ClassVar = "{timeout: 2.0}"

    timeout: float = Field(default=PoolSettings.timeout, ge=0.1, description="the time limit of one answer, in seconds")
    memory_gib: float = Field(
        default=PoolSettings.memory_gib, ge=0.5, description="address space of a grading process, in GiB"
    )
    workers: int | None = Field(default=None, ge=1, description="grading processes; null: one per core")


class EvalSpec(Part):
    """The `eval:` part: which held-out problems, how they are sampled, and when."""

    example: ClassVar = "{before_after: true}"
    renamed: ClassVar = RENAMED_IN_EVAL

    before_after: bool = Field(default=False, description="evaluate before the first step and after the last")
    every: int | None = Field(default=None, ge=1, description="evaluate every so many steps; null: do not")
    best: bool = Field(default=False, description="keep the model whose accuracy interval has the highest lower end")
    stop_at: float | None = Field(
        default=None, gt=0, lt=1, description="stop when the lower end of the accuracy interval reaches this accuracy"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop when the last so many evaluations are no better in mean than as many before them",
    )
    datasets: list | dict | str | None = Field(
        default=None, description="names, or mappings as in dataset:; null: the training dataset at `split`"
    )
    split: str = Field(default="test", description="the split of datasets that name none")
    max_samples: int | None = Field(default=None, ge=1, description="problems per dataset; null: all")
    samples: int = Field(default=1, ge=1, description="completions per problem")
    temperature: float = Field(default=0.0, ge=0, description="the sampling temperature; 0: greedy decoding")
    top_p: float = Field(default=1.0, gt=0, le=1, description="the probability mass of nucleus sampling")
    k: list[int] | None = Field(default=None, description="the values of k for pass@k; null: the powers of two")
    rewards: bool = Field(default=True, description="score the completions with the recipe's rewards too")
    batch_size: int = Field(
        default=32, ge=1, description="completions per batch without vLLM, and per call of a reward function"
    )
    max_completion_length: int | None = Field(default=None, ge=1, description="in tokens; null: that of the training")

    @property
    def wanted(self) -> bool:
        """Whether the training evaluates at all."""
        return self.before_after or self.every is not None


class TemplateKeys(Part, PromptTemplate):
    """A prompt template of one's own."""


class Ours(Part):
    """Keys of every recipe. Datasets, template and rewards are checked by entries.py: their keys depend on a name."""

    renamed: ClassVar = RENAMED

    extends: str | list[str] | None = Field(
        default=None,
        description="the recipe to start from: a file, or the name of a shipped recipe; of a list the first, with the "
        "keys that the others set themselves",
    )
    dataset: Any = Field(default=None, description="the training problems: one dataset, or a list of them")
    prompt_template: Any = Field(
        default="boxed", description=f"how a question is asked: {', '.join(TEMPLATES)}, or a mapping of your own"
    )
    eval: EvalSpec = Field(default=EvalSpec(), description="evaluation on held-out problems")
    grading: GradingSpec = Field(default=GradingSpec(), description="limits of the grading processes")
    alarms: AlarmSpec = Field(default=AlarmSpec(), description="what is watched during the training, and what stops it")
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
        description="replace zero-std groups by groups of further prompts (DAPO); null: do not",
    )
    vllm_engine_kwargs: dict[str, Any] = Field(default={}, description="further arguments of vLLM's engine")
    completions: CompletionsSpec = Field(default=CompletionsSpec(), description="which completions are kept in files")
    tools: list[str] = Field(default=[], description="functions that the model may call, each FILE.py:FUNCTION")
    environment: str | None = Field(
        default=None, description="a class whose methods the model may call, FILE.py:CLASS; one instance per completion"
    )
    on_reward_error: Literal["stop", "skip"] = Field(
        default="stop", description="where a reward function fails: stop, or skip the completions"
    )


class SftKeys(Ours):
    """Our keys of an SFT recipe."""

    sft: SftSpec = Field(default=SftSpec(), description="makes the recipe one for SFT")


def baseline_problems(keys: GrpoKeys, flat: dict) -> Iterator[str]:
    """`none` is plain REINFORCE, which nothing must normalise afterwards; its keys are set in `flat`."""
    if keys.baseline != "none":
        return
    if keys.dynamic_sampling:
        yield (
            "dynamic_sampling: it leaves out groups whose completions all earn the same, which teach with baseline: "
            "none: leave it out"
        )
    wanted = {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize"}
    for key, value in wanted.items():
        if flat.setdefault(key, value) != value:
            yield f"{key}: {flat[key]} normalises by a mean, which baseline: none does without: leave it out"


def prompt_template(given: Any, problems: list[str]) -> PromptTemplate | None:
    if isinstance(given, str) and given in TEMPLATES:
        return TEMPLATES[given]
    if not isinstance(given, dict):
        problems.append(
            f"prompt_template: no template {given!r}: use one of {', '.join(TEMPLATES)}, or a mapping with user: and "
            "answer_style:"
        )
        return None
    before = len(problems)
    keys = validated(TemplateKeys, given, "prompt_template.", problems)
    if "{question}" not in str(given.get("user", "{question}")):
        problems.append("prompt_template.user: holds no {question}: say where the question goes")
    if keys and "" in keys.stop:
        problems.append("prompt_template.stop: an empty text would end every completion at once: leave it out")
    return None if len(problems) > before else PromptTemplate(**keys.model_dump())


def looks_local(path: str) -> bool:
    """Whether a dataset's `path` means a file or folder, not a Hub id."""
    return bare(Path(path)).suffix.lower() in FILE_TYPES or path.startswith((".", "/", "~"))


def is_hub_id(name: str) -> bool:
    """Whether a model's or dataset's name is none of something local, what is missing there included."""
    return name.count("/") < 2 and not looks_local(name) and not os.path.exists(name)


def model_folder(path: str) -> str:
    """A run's folder means its final model; every other folder or Hub id means itself."""
    path = os.path.expanduser(path)
    final = os.path.join(path, "final")
    return final if os.path.isdir(final) and not os.path.exists(os.path.join(path, "config.json")) else path
