"""Datasets, rewards and tools of a recipe. Which keys an entry takes depends on the dataset or function it names."""

import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from grpo_math.data.adapters import ADAPTERS, EVALUATION
from grpo_math.data.functions import source_file, split_reference
from grpo_math.data.problem import DatasetSpec
from grpo_math.data.prompts import RESERVED_COLUMNS, PromptTemplate
from grpo_math.data.sources import looks_local
from grpo_math.errors import UserError, nearest, suggestion
from grpo_math.recipe.checking import Part, validated
from grpo_math.recipe.parts import EvalSpec, GrpoKeys
from grpo_math.recipe.trl import assigns, function_types
from grpo_math.rewards.library import LIMITS
from grpo_math.rewards.reward import REWARDS, RewardSpec, settings

NO_DATASET = "dataset: missing, add dataset: {name: gsm8k}"
NO_REWARDS = "rewards: missing, add rewards: {correctness: {weight: 1.0}}"


class Entry(Part):
    """One dataset or reward."""

    model_config = ConfigDict(allow_inf_nan=False)


class OpenEntry(Entry):
    """For a function whose parameters are known only after importing it."""

    model_config = ConfigDict(extra="allow")


def entry_model(spec: type[BaseModel], own: Mapping[str, Any] | None, *left_out: str) -> type[Entry]:
    """The keys of an entry: those of its spec, and the parameters `own` of what it names (None: any)."""
    kept = {name: (field.annotation, field) for name, field in spec.model_fields.items() if name not in left_out}
    fields: dict[str, Any] = kept | {k: kind for k, kind in (own or {}).items() if not k.startswith("_")} | kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter may be called like a method of pydantic's
        return create_model(spec.__name__, __base__=OpenEntry if own is None else Entry, **fields)


def parameter_types(function: Callable, *left_out: str) -> dict[str, Any]:
    """The parameters of a shipped function, as pydantic's fields: type, and default or `...`."""
    named = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        one.name: (one.annotation, ... if one.default is one.empty else one.default)
        for one in named
        if one.kind in kinds and one.name not in left_out
    }


def reference_types(reference: str, where: str, problems: list[str]) -> dict[str, Any] | None:
    """The parameters of the function `file.py:function` names; None where only an import would tell."""
    try:
        module, name = split_reference(reference)
        source = source_file(module)
        found = function_types(source, name) if source else None
        if source and found is None and module.endswith(".py") and not assigns(source, name):
            raise UserError(f"{module} has no function {name!r}")
    except UserError as error:
        problems.append(f"{where}: {error}")
        return None
    return None if found is None else {name: (kind, None) for name, kind in found.items()}


def split_params(checked: Entry, spec: type[BaseModel], *no_keys: str) -> dict[str, Any]:
    """The given keys of an entry: those of the spec but `no_keys`, and the others as `params`."""
    given = {name: getattr(checked, name) for name in checked.model_fields_set}
    params = {name: given.pop(name) for name in list(given) if name not in spec.model_fields.keys() - {*no_keys}}
    return given | {"params": params}


def dataset_specs(given: Any, problems: list[str]) -> list[DatasetSpec]:
    if not given:
        problems.append(NO_DATASET)
        return []
    if not isinstance(given, list):
        return dataset_spec(given, "dataset.", problems)
    return [spec for i, entry in enumerate(given) for spec in dataset_spec(entry, f"dataset[{i}].", problems)]


def dataset_spec(entry: Any, where: str, problems: list[str]) -> list[DatasetSpec]:
    """One dataset as a list of one spec, or of none where it cannot be read."""
    if not isinstance(entry, dict):
        problems.append(f"{where[:-1]}: expected a mapping such as {{name: gsm8k}}, got {entry!r}")
        return []
    name, path = entry.get("name"), entry.get("path")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str | None):
            problems.append(f"{where}{key}: expected a string, got {entry[key]!r}")
            return []
    if name is None and ".py:" in str(path):
        own = reference_types(str(path), f"{where}path", problems)
    elif name in ADAPTERS:
        adapter = ADAPTERS[name]
        own = parameter_types(adapter.generate or adapter.parse, "row", "split", "config")
    else:
        wrong = f"unknown dataset {name!r}{closest(name, ADAPTERS)}" if name else "missing"
        problems.append(
            f"{where}name: {wrong}: `grpo-math datasets` lists them (your own: {{name: json, path: FILE, FOLDER or "
            "HUB_ID}, or only path: my_data.py:load)"
        )
        return []
    if name and path and looks_local(path) and not os.path.exists(os.path.expanduser(path)):
        problems.append(f"{where}path: no file or folder {path}")
    checked = validated(entry_model(DatasetSpec, own, "params", "where"), entry, where, problems)
    if checked is None:
        return []
    spec = DatasetSpec(**split_params(checked, DatasetSpec), where=where)
    problems += name_problems(spec)
    return [spec]


def name_problems(spec: DatasetSpec) -> Iterator[str]:
    """The splits and the evaluation sets that no dataset has."""
    there = ADAPTERS[spec.name].splits if spec.name and not spec.path else {}
    for part in re.findall(r"(?:^|\+)\s*(\w+)", spec.split) if there else ():
        if part not in {*there, "all"}:
            yield f"{spec.where}split: no split {part!r} of {spec.name}: use {' or '.join(there)}"
    for name in spec.decontaminate if isinstance(spec.decontaminate, list) else ():
        if name not in EVALUATION:
            wrong = f"unknown evaluation set {name!r}{closest(name, EVALUATION)}"
            yield f"{spec.where}decontaminate: {wrong}: `grpo-math datasets` lists them"


def closest(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f" (did you mean {near}?)" if near else ""


def evaluation_split(name: Any, asked: str) -> str:
    """The split that `test` means for a dataset, whose name may be anything yet: some evaluation sets are published as
    `train`."""
    return ADAPTERS[name].test if isinstance(name, str) and name in ADAPTERS and asked == "test" else asked


def held_out_specs(spec: EvalSpec, datasets: list[DatasetSpec], trains: bool, problems: list[str]) -> list[DatasetSpec]:
    """The datasets of `eval:`. Where nothing `trains`, the training problems serve as well."""
    wanted = trains and spec.wanted
    asked: dict[str, Any] = {"split": spec.split, "max_samples": spec.max_samples}
    if spec.datasets:
        found = named_specs(spec.datasets, asked, problems)
        if trains and any(same_rows(one, trained) for one in found for trained in datasets):
            problems.append("eval.datasets: these are the training problems: name other datasets, or another split")
        return found
    if len(datasets) != 1:
        if wanted and datasets:
            problems.append("eval.datasets: missing, with several training datasets: name those to evaluate on")
        return []
    trained = datasets[0]
    asked["split"] = evaluation_split(trained.name, spec.split)
    if trained.name and trained.path and Path(trained.path).is_file():
        if wanted:
            problems.append(
                f"eval.datasets: missing, and {trained.path} is a single file, which the training reads: name another, "
                f"eval: {{datasets: {{name: {trained.name}, path: FILE}}}}"
            )
        return []
    if wanted and asked["split"] == trained.split:
        problems.append(f"eval.split: {trained.split} is the training split: name another one")
    kept = {key: getattr(trained, key) for key in ("name", "path", "config", "params")}
    held_out = DatasetSpec(**kept, **asked, where="eval.datasets.")
    if not any(name_problems(held_out)):
        return [held_out]
    if wanted or not trains:
        problems.append(
            f"eval.datasets: missing: {trained.name} has no split {held_out.split!r}: name those to evaluate on, "
            "eval: {datasets: [math500]}"
        )
    return []


TRAINING = ("max_prompt_tokens", "decontaminate", "pass_rate", "shuffle_answers")  # a benchmark is evaluated whole


def named_specs(given: Any, asked: dict, problems: list[str]) -> list[DatasetSpec]:
    """`eval.datasets`: one dataset or a list, each a name (`gsm8k`) or a mapping as in `dataset:`."""
    found = []
    for index, entry in enumerate(given if isinstance(given, list) else [given]):
        where = f"eval.datasets[{index}]." if isinstance(given, list) else "eval.datasets."
        entry = {"name": entry} if isinstance(entry, str) else entry
        if isinstance(entry, dict):
            split = evaluation_split(entry.get("name"), asked["split"])
            entry = asked | {"split": split} | {key: value for key, value in entry.items() if value is not None}
            problems += [
                f"{where}{key}: for training problems only: leave it out" for key in TRAINING if entry.get(key)
            ]
        found += dataset_spec(entry, where, problems)
    return found


def same_rows(one: DatasetSpec, other: DatasetSpec) -> bool:
    return (one.name, one.path, one.split, one.config) == (other.name, other.path, other.split, other.config) or (
        one.path is not None and one.path == other.path and Path(one.path).is_file()
    )


def reward_specs(given: Any, problems: list[str]) -> list[RewardSpec]:
    if not isinstance(given, dict) or not given:
        problems.append(NO_REWARDS)
        return []
    entries = {str(name): entry for name, entry in given.items() if entry is not False}  # false switches one off
    found = [reward_spec(name, {} if entry is None else entry, problems) for name, entry in entries.items()]
    specs = {spec.name: spec for spec in found if spec}
    for spec in specs.values():
        check_gate(spec, specs, problems)
    if not problems and not any(spec.weight * spec.scale for spec in specs.values()):
        problems.append("rewards: every weight or scale is 0, so there is nothing to learn: set one to another value")
    return list(specs.values())


def reward_spec(name: str, entry: Any, problems: list[str]) -> RewardSpec | None:
    where = f"rewards.{name}."
    if not isinstance(entry, dict):
        problems.append(f"{where[:-1]}: expected a mapping such as {{weight: 1.0}}, or false, got {entry!r}")
        return None
    path, own = entry.get("path"), None
    if entry.get("reward_model") is not None:
        return reward_model_spec(name, entry, where, problems)
    if path is not None:
        own = reference_types(str(path), f"{where}path", problems)
        own = own and {key: kind for key, kind in own.items() if key not in RESERVED_COLUMNS}
    elif name in REWARDS:
        limits = LIMITS.get(name, {})
        own = {key: parameter_types(REWARDS[name])[key] for key in settings(REWARDS[name])}
        own |= {key: (own[key][0], Field(own[key][1], ge=low, le=high)) for key, (low, high) in limits.items()}
    else:
        known = suggestion(name, list(REWARDS), "", {})
        problems.append(f"{where[:-1]}: not a shipped reward, {known} (your own: path: my_rewards.py:function)")
        return None
    for key in (own or {}).keys() & (RewardSpec.model_fields.keys() - {"name", "params"}) & entry.keys():
        problems.append(f"{where}{key}: a key of every entry, and a parameter of the function: rename the parameter")
    checked = validated(entry_model(RewardSpec, own, "name", "params"), entry, where, problems)
    return checked and RewardSpec(name=name, **split_params(checked, RewardSpec, "name"))


def reward_model_spec(name: str, entry: dict, where: str, problems: list[str]) -> RewardSpec | None:
    refused = [key for key in ("scale", "bias", "gate") if key in entry]
    problems += [
        f"{where}{key}: not supported for a reward model, whose score TRL uses unchanged: use weight" for key in refused
    ]
    model = entry_model(RewardSpec, {}, "name", "params", "path", "scale", "bias", "gate", "timeout")
    checked: Any = validated(model, {k: v for k, v in entry.items() if k not in refused}, where, problems)
    if checked is None or checked.reward_model is None:
        return None
    folder = os.path.expanduser(checked.reward_model)
    if checked.reward_model.startswith((".", "/", "~")) and not os.path.isdir(folder):
        problems.append(f"{where}reward_model: no folder {checked.reward_model}")
    return RewardSpec(name=name, reward_model=folder, weight=checked.weight)


def check_gate(spec: RewardSpec, by_name: dict[str, RewardSpec], problems: list[str]) -> None:
    if spec.gate is None:
        return
    gate = by_name.get(spec.gate)
    if gate is None or gate is spec:
        others = ", ".join(name for name in by_name if name != spec.name) or "none"
        problems.append(f"rewards.{spec.name}.gate: no other reward {spec.gate!r} in this recipe (it has {others})")
    elif gate.gate or gate.reward_model:
        wrong = "has a gate itself" if gate.gate else "is a reward model"
        problems.append(f"rewards.{spec.name}.gate: {spec.gate} {wrong}: name a reward function without a gate")
    elif min(spec.weight, spec.scale) < 0:
        problems.append(
            f"rewards.{spec.name}.gate: a gate withholds positive scores, which a negative weight or scale turns into "
            "penalties: make both positive, and negate the reward's own settings instead"
        )


def tool_problems(
    ours: GrpoKeys, flat: dict, template: PromptTemplate | None, rewards: list[RewardSpec]
) -> Iterator[str]:
    """Tools are called in a conversation, which TRL continues with the chat template."""
    if not (ours.tools or ours.environment):
        if "max_tool_calling_iterations" in flat:
            yield "max_tool_calling_iterations: no effect without tools: add tools: [FILE.py:FUNCTION]"
        return
    found: list[str] = []
    for place, reference in enumerate(ours.tools):
        reference_types(reference, f"tools[{place}]", found)
    if ours.environment:
        reference_types(ours.environment, "environment", found)
        if ours.dynamic_sampling:
            found.append("dynamic_sampling: TRL resets the environments only for the batch's own prompts: leave it out")
    yield from found
    if template and not (template.chat and not template.prefill):
        key = "prefill" if template.chat else "chat: false"
        yield (
            f"prompt_template: tools need a conversation, but {key} makes the prompt plain text: use a template "
            "with chat: true and no prefill, such as boxed"
        )
    for spec in rewards:
        if spec.reward_model:
            yield (
                f"rewards.{spec.name}.reward_model: it scores whole conversations, and its template may not support "
                "tools: leave it out"
            )
