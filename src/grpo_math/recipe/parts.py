"""The parts of a recipe that are ours: datasets, prompt template, rewards, grading, SFT, each checked.

Every `check_...` takes what the YAML holds and appends what is wrong with it to `problems`, one line each.
"""

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import BaseModel

from grpo_math.data.adapters import ADAPTERS
from grpo_math.data.functions import parameters, source_file, split_reference
from grpo_math.data.problem import DatasetSpec, PassRateSpec
from grpo_math.data.prompts import RESERVED_COLUMNS, TEMPLATES, PromptTemplate
from grpo_math.data.sources import FILE_TYPES
from grpo_math.errors import UserError, suggestion
from grpo_math.grading import STYLES, PoolSettings
from grpo_math.recipe.schema import Keys, assigns, check_keys, function_keys
from grpo_math.rewards.library import LIMITS
from grpo_math.rewards.reward import REWARDS, RewardSpec, settings


@dataclass(frozen=True)
class SftSpec:
    """The `sft:` part, which makes a recipe one for SFT: `target` is `worked` (the worked solution) or `answer`."""

    target: str = "worked"

    @property
    def worked(self) -> bool:
        return self.target == "worked"


NO_DATASET = "dataset: missing: write dataset: {name: gsm8k}"
ALARMS = ("nan", "reward", "zero_std", "truncated", "entropy", "kl", "importance", "timeouts", "length")


@dataclass(frozen=True)
class AlarmSpec:
    """The `alarms:` part (alarms.py): those that end the training, the number of steps that each but `nan` looks back
    on, and the KL divergence from the reference model that is too much."""

    stop_on: tuple[str, ...] = ("nan",)
    steps: int = 10
    kl: float = 1.0


@dataclass(frozen=True)
class CompletionsSpec:
    """The `completions:` part: those of the first step and of one step in `every` are kept, with 0 none. Left out,
    it is about a hundred steps of the run."""

    every: int | None = None


def check_completions(given, problems: list[str]) -> CompletionsSpec:
    if not isinstance(given, dict):
        problems.append(f"completions: want a mapping such as {{every: 10}}, got {given!r}")
        return CompletionsSpec()
    checked = check_keys(given, fields_of(CompletionsSpec), "completions.", problems)
    if (checked.get("every") or 0) < 0:
        problems.append(f"completions.every: want 0 (keep none) or more, got {checked['every']}")
    return CompletionsSpec(**checked)


def check_alarms(given, problems: list[str]) -> AlarmSpec:
    if not isinstance(given, dict):
        problems.append(f"alarms: want a mapping such as {{stop_on: [nan]}}, got {given!r}")
        return AlarmSpec()
    checked = check_keys(given, fields_of(AlarmSpec) | {"stop_on": "list[str]"}, "alarms.", problems)
    checked["stop_on"] = tuple(checked.get("stop_on", AlarmSpec.stop_on))
    for name in checked["stop_on"]:
        if name not in ALARMS:
            problems.append(f"alarms.stop_on: no alarm {name!r}: use some of {', '.join(ALARMS)}")
    for key, least in (("steps", 1), ("kl", 0)):
        if checked.get(key, least) < least:
            problems.append(f"alarms.{key}: want at least {least}, got {checked[key]}")
    return AlarmSpec(**checked)


def check_datasets(given, problems: list[str]) -> list[DatasetSpec]:
    if not given:
        problems.append(NO_DATASET)
        return []
    if not isinstance(given, list):
        return check_dataset(given, "dataset.", problems)
    return [spec for i, entry in enumerate(given) for spec in check_dataset(entry, f"dataset[{i}].", problems)]


def check_dataset(entry, where: str, problems: list[str]) -> list[DatasetSpec]:
    """One dataset as a list of one spec, or of none when it cannot be read."""
    if not isinstance(entry, dict):
        problems.append(f"{where[:-1]}: want a mapping such as {{name: gsm8k}}, got {entry!r}")
        return []
    name, path = entry.get("name"), entry.get("path")
    if not isinstance(name, str | None) or not isinstance(path, str | None):
        problems.append(f"{where}{'path' if isinstance(name, str | None) else 'name'}: want text")
        return []
    if name is None and ".py:" in str(path):
        own = reference_keys(path, where + "path", problems)
    elif name in ADAPTERS:
        adapter = ADAPTERS[name]
        function = adapter.generate or adapter.parse
        own = {key: kind for key, kind in parameters(function).items() if key not in ("row", "split", "config")}
        problems += [f"{where}{key}: missing for {name}" for key in required(function) if key in own.keys() - entry]
    else:
        wrong = "missing" if name is None else f"no dataset {name!r}"
        problems.append(f"{where}name: {wrong}: use one of {', '.join(ADAPTERS)}, or only path: my_data.py:load")
        return []
    if name and path and looks_local(path) and not os.path.exists(os.path.expanduser(path)):
        problems.append(f"{where}path: no file or folder {path}")
    shared = fields_of(DatasetSpec, "params", "where") | {"pass_rate": "dict | None"}
    checked = check_keys(entry, {**shared, **(dict.fromkeys(entry, "") if own is None else own)}, where, problems)
    at_least_one(checked, where, problems)
    checked["pass_rate"] = check_pass_rate(entry.get("pass_rate"), f"{where}pass_rate", problems)
    params = {key: checked.pop(key) for key in list(checked) if key not in shared}
    return [DatasetSpec.model_construct(**checked, params=params, where=where)]


def check_pass_rate(given, where: str, problems: list[str]) -> PassRateSpec | None:
    if not isinstance(given, dict):  # what it is instead, check_keys says
        return None
    checked = check_keys(given, fields_of(PassRateSpec), f"{where}.", problems)
    low, high = checked.get("min", 0.0), checked.get("max", 1.0)
    if not checked.get("file"):
        problems.append(
            f"{where}.file: missing: give the folder of grpo-math evaluate --split train, {{file: FOLDER, min: 0.1}}"
        )
        return None
    if not 0 <= low <= high <= 1:
        problems.append(f"{where}: want 0 <= min <= max <= 1, got min {low:g} and max {high:g}")
    return PassRateSpec.model_construct(**checked)


def at_least_one(checked: dict, where: str, problems: list[str]) -> None:
    for key in ("max_samples", "max_prompt_tokens", "batch_size", "size", "every", "samples", "max_completion_length"):
        if checked.get(key) is not None and checked[key] < 1:
            problems.append(f"{where}{key}: want at least 1, got {checked[key]}")


def looks_local(path: str) -> bool:
    return Path(path).suffix.lower() in FILE_TYPES or path.startswith((".", "/", "~"))


def check_template(given, problems: list[str]) -> PromptTemplate | None:
    if isinstance(given, str) and given in TEMPLATES:
        return TEMPLATES[given]
    if not isinstance(given, dict):
        problems.append(
            f"prompt_template: no template {given!r}: use one of {', '.join(TEMPLATES)}, or a mapping with user: and "
            "answer_style:"
        )
        return None
    before = len(problems)
    checked = check_keys(given, {**fields_of(PromptTemplate), "stop": "list[str]"}, "prompt_template.", problems)
    style = checked.get("answer_style", "boxed")
    if style not in STYLES:
        problems.append(f"prompt_template.answer_style: no style {style!r}: use one of {', '.join(STYLES)}")
    if "{question}" not in str(given.get("user", "{question}")):
        problems.append("prompt_template.user: holds no {question}: say where the question goes")
    if len(problems) > before:
        return None
    return PromptTemplate(**{**checked, "stop": tuple(checked.get("stop", ()))})


def check_rewards(given, problems: list[str]) -> list[RewardSpec]:
    if not isinstance(given, dict) or not given:
        problems.append("rewards: missing: write rewards: {correctness: {weight: 1.0}}")
        return []
    entries = {name: entry for name, entry in given.items() if entry is not False}  # false switches one off
    specs = [spec for name, entry in entries.items() for spec in check_reward(str(name), entry, problems)]
    by_name = {spec.name: spec for spec in specs}
    for spec in specs:
        check_gate(spec, by_name, problems)
    if not problems and not any(spec.weight * spec.scale for spec in specs):
        problems.append("rewards: none has a weight other than 0: there is nothing to learn from")
    return specs


def check_reward(name: str, entry, problems: list[str]) -> list[RewardSpec]:
    """One entry as a list of one spec, or of none when it cannot be read."""
    where = f"rewards.{name}."
    if not isinstance(entry, dict | None):
        problems.append(f"{where[:-1]}: want a mapping such as {{weight: 1.0}}, or false, got {entry!r}")
        return []
    entry = entry or {}
    path, model = entry.get("path"), entry.get("reward_model")
    shared = fields_of(RewardSpec, "name", "params")
    if model is not None:
        entry = check_reward_model(entry, where, problems)
        own: Keys | None = {}
        shared = {key: shared[key] for key in ("reward_model", "weight")}
    elif path is not None:
        own = reference_keys(str(path), where + "path", problems)
        own = own and {key: kind for key, kind in own.items() if key not in RESERVED_COLUMNS}
    elif name in REWARDS:
        own = {key: kind for key, kind in parameters(REWARDS[name]).items() if key in settings(REWARDS[name])}
    else:
        known = suggestion(name, list(REWARDS), "", {})
        problems.append(f"{where[:-1]}: no shipped reward, {known} (your own: path: my_rewards.py:function)")
        return []
    for key in (own or {}).keys() & shared.keys() & entry.keys():
        problems.append(f"{where}{key}: a key of every entry and a parameter of the function: rename the parameter")
    own = dict.fromkeys(entry, "") if own is None else own
    checked = check_keys(entry, {**own, **shared}, where, problems)
    check_numbers(checked, {} if path else LIMITS.get(name, {}), where, problems)
    params = {key: checked.pop(key) for key in list(checked) if key not in shared}
    return [RewardSpec.model_construct(name=name, **checked, params=params)]


def check_numbers(checked: dict, limits: dict[str, tuple[float, float]], where: str, problems: list[str]) -> None:
    for key, value in checked.items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{where}{key}: want a finite number, got {value}")
        elif key == "timeout" and value is not None and value <= 0:
            problems.append(f"{where}timeout: want more than 0 seconds, got {value}")
        elif key in limits and not limits[key][0] <= value <= limits[key][1]:
            low, high = limits[key]
            problems.append(f"{where}{key}: want a number from {low:g} to {high:g}, got {value}")


def check_reward_model(entry: dict, where: str, problems: list[str]) -> dict:
    """The entry without the keys that are not for a reward model."""
    path = entry["reward_model"]
    if isinstance(path, str) and path.startswith((".", "/", "~")):
        entry = entry | {"reward_model": os.path.expanduser(path)}
        if not os.path.isdir(entry["reward_model"]):
            problems.append(f"{where}reward_model: no folder {path}")
    refused = [key for key in ("scale", "bias", "gate") if key in entry]
    for key in refused:
        problems.append(f"{where}{key}: not for a reward model, whose score TRL takes as it is: use weight")
    return {key: value for key, value in entry.items() if key not in refused}


def check_gate(spec: RewardSpec, by_name: dict[str, RewardSpec], problems: list[str]) -> None:
    if spec.gate is None:
        return
    gate = by_name.get(spec.gate)
    if gate is None or gate is spec:
        others = ", ".join(name for name in by_name if name != spec.name) or "none"
        problems.append(f"rewards.{spec.name}.gate: no other reward {spec.gate!r} here (there: {others})")
    elif gate.gate or gate.reward_model:
        wrong = "is gated itself" if gate.gate else "is a reward model"
        problems.append(f"rewards.{spec.name}.gate: {spec.gate} {wrong}: name a plain one")
    elif min(spec.weight, spec.scale) < 0:
        problems.append(
            f"rewards.{spec.name}.gate: a gate holds back what is earned, and with a negative weight or scale that is "
            "what is taken: turn the signs of the settings instead"
        )


def check_grading(given, problems: list[str]) -> PoolSettings:
    if not isinstance(given, dict):
        problems.append(f"grading: want a mapping such as {{timeout: 2.0}}, got {given!r}")
        return PoolSettings()
    checked = check_keys(given, fields_of(PoolSettings), "grading.", problems)
    low = {"timeout": 0.1, "memory_gib": 0.5, "workers": 1}
    for key, value in checked.items():
        if value is not None and value < low[key]:
            problems.append(f"grading.{key}: want at least {low[key]:g}, got {value}")
    return PoolSettings(**checked)


def check_sft(given, problems: list[str]) -> SftSpec:
    if not isinstance(given, dict):
        problems.append(f"sft: want a mapping such as {{target: worked}}, got {given!r}")
        return SftSpec()
    checked = check_keys(given, fields_of(SftSpec), "sft.", problems)
    if checked.get("target", "worked") not in ("worked", "answer"):
        problems.append(f"sft.target: want worked or answer, got {checked['target']!r}")
    return SftSpec(**checked)


def reference_keys(reference: str, where: str, problems: list[str]) -> Keys | None:
    """The parameters of the function `file.py:function` names; None where only importing it would tell."""
    try:
        module, name = split_reference(reference)
        source = source_file(module)
        keys = function_keys(source, name) if source else None
    except UserError as error:
        problems.append(f"{where}: {error}")
        return None
    if keys is None and module.endswith(".py") and not assigns(source, name):
        problems.append(f"{where}: {module} has no function {name!r}")
    return keys


def fields_of(kind: type, *left_out: str) -> Keys:
    if issubclass(kind, BaseModel):
        found = {name: field.annotation for name, field in kind.model_fields.items()}
    else:
        found = {field.name: field.type for field in fields(kind)}
    return {name: inspect.formatannotation(kind) for name, kind in found.items() if name not in left_out}


def required(function: Callable) -> list[str]:
    return [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
