"""The one normal form of a problem, and what a recipe tells about a source of them."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Problem:
    """The normal form of a problem, which a dataset function may yield.

    Attributes:
        question: The text of the question.
        answer: The final reference answer, or a JSON list of texts of which each is right.
        worked: The worked solution, for SFT and for rewards that read it.
        meta: Further columns, which reward functions get by name.
        system: The problem's own system message.
    """

    question: str
    answer: str
    worked: str | None = None
    meta: dict = field(default_factory=dict)
    system: str | None = None


class Unusable(Exception):
    """Why a row cannot become a problem."""


class PassRateSpec(BaseModel):
    """The `pass_rate:` part of a dataset: keep the problems whose pass rate is from `min` to `max`, in [0, 1], and
    refuse them where fewer than the share `require` of the groups can be expected to have an advantage.

    `file` is the folder (or its completions.jsonl) of a `grpo-math evaluate` on the training problems.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str = Field(min_length=1, description="the folder of grpo-math evaluate --split train --samples 8")
    min: float = Field(default=0.0, ge=0, le=1, description="the lowest pass rate to keep")
    max: float = Field(default=1.0, ge=0, le=1, description="the highest pass rate to keep")
    require: float = Field(default=0.0, ge=0, le=1, description="the minimum share of groups with an advantage")

    @model_validator(mode="after")
    def check_order(self) -> "PassRateSpec":
        if self.min > self.max:
            raise ValueError(f"expected 0 <= min <= max <= 1, got min {self.min:g} and max {self.max:g}")
        return self


class DatasetSpec(BaseModel):
    """The `dataset:` part of a recipe.

    `params` are the adapter's own keys. `where` is the place of these keys in the recipe, `dataset.` or
    `eval.datasets[0].`, with which every error message begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str | None = Field(default=None, description="a shipped dataset; null: `path` names a function of your own")
    path: str | None = Field(default=None, description="a file, a folder, a Hub id, or FILE.py:FUNCTION")
    split: str = Field(default="train", description="the split to read")
    config: str | dict[str, Any] | None = Field(
        default=None, description="the Hub dataset's config, or the task's settings"
    )
    max_samples: int | None = Field(default=None, ge=1, description="the number of problems to use; null: all")
    shuffle_seed: int | None = Field(default=None, description="the seed of a shuffle before max_samples; null: none")
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="drop problems with longer prompts")
    weight: float | None = Field(default=None, description="the share in the mixture; null: use all problems")
    decontaminate: bool | list[str] = Field(
        default=False,
        description="drop problems that overlap with evaluation sets; a list: only with these and those of eval",
    )
    shuffle_answers: bool = Field(
        default=False, description="give each problem another one's answer: a control, in which nothing can be learned"
    )
    pass_rate: PassRateSpec | None = Field(default=None, description="keep problems by their pass rate; null: keep all")
    params: dict[str, Any] = {}
    where: str = Field(default="dataset.", exclude=True)

    @property
    def subset(self) -> str | None:
        """The name of a Hub dataset's config, or of its folder."""
        return self.config if isinstance(self.config, str) else None

    @property
    def title(self) -> str:
        """The name in tables and figures: that of the files, or the Hub id, where a `path` is given."""
        source = self.path or self.name
        if self.path and self.name and (path := Path(os.path.expanduser(self.path))).exists():
            path = path.resolve()
            source = path.parent.name if path.is_file() and path.stem in ("train", "test", self.split) else path.stem
        return f"{source} {self.split}"


def titles(specs: Iterable[DatasetSpec]) -> list[str]:
    """The title of each dataset, with its config or path where another one has the same."""
    found: list[str] = []
    for spec in specs:
        title = spec.title if spec.title not in found else f"{spec.title} {spec.config or spec.path or ''}".strip()
        while title in found:
            title += " again"
        found.append(title)
    return found


@dataclass(frozen=True)
class Problems:
    """The problems of one source, the row each stood in (from 1), and how many rows were dropped for which reason."""

    title: str
    problems: list[Problem]
    places: list[int]
    rows: int
    dropped: Counter

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.title}: {len(self.problems):,} problems of {self.rows:,} rows" + (
            f", dropped: {reasons}" if reasons else ""
        )


def fingerprint(problems: list[Problem]) -> str:
    """16 hex digits that change with any question, system message or answer or their order."""
    digest = hashlib.sha256()
    for problem in problems:
        own = [problem.system] if problem.system else []
        digest.update(json.dumps([problem.question, problem.answer, *own]).encode() + b"\n")
    return digest.hexdigest()[:16]
