"""One YAML file and the command line become one checked `Recipe`, before anything heavy is imported.

All problems are reported at once, one line each. Keys are TRL's own (GRPOConfig, ModelConfig) plus `dataset`,
`prompt_template`, `rewards`, `eval` and `grading`; `extends: other.yaml` starts from another recipe.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from grpo_math.data import ADAPTERS, DatasetSpec
from grpo_math.errors import UserError
from grpo_math.functions import parameters, source_file, split_reference
from grpo_math.grading import STYLES, PoolSettings
from grpo_math.prompts import RESERVED_COLUMNS, TEMPLATES, PromptTemplate
from grpo_math.recipe_file import merge, parse_arguments, read_recipe
from grpo_math.rewards import REWARDS, RewardSpec
from grpo_math.schema import Keys, check_keys, function_keys, suggestion, trl_keys
from grpo_math.sources import FILE_READERS

OURS = ("extends", "dataset", "prompt_template", "rewards", "eval", "grading")
RENAMED = {
    "max_prompt_length": "dataset.max_prompt_tokens (longer prompts are dropped and counted)",
    "kl_coef": "beta",
    "kl_beta": "beta",
    "n_samples": "num_generations",
    "n_samples_per_prompt": "num_generations",
    "rollout_n": "num_generations",
    "group_size": "num_generations",
    "num_return_sequences": "num_generations",
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "clip_range": "epsilon",
    "clip_eps": "epsilon",
    "cliprange": "epsilon",
    "torch_dtype": "dtype",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of the run)",
    "evaluation_strategy": "eval: {before_after: true}",
    "overwrite_output_dir": "another output_dir, or resume_from_checkpoint: auto",
    "reward_funcs": "rewards: {correctness: {weight: 1.0}}",
    "dataset_name": "dataset: {name: gsm8k}",
    "dataset_config": "dataset: {config: main}",
    "dataset_train_split": "dataset: {split: train}",
    "vllm_device": "vllm_mode: colocate or server",
}
REFUSED = {
    "reward_weights": "give the weight beside the reward, rewards: {correctness: {weight: 1.0}}",
    "eval_strategy": "use eval: {before_after: true}",
    "eval_steps": "use eval: {before_after: true}",
    "do_eval": "use eval: {before_after: true}",
    "eval_on_start": "use eval: {before_after: true}",
    "hub_token": "set HF_TOKEN in the environment, so that no file keeps it",
    "remove_unused_columns": "leave it out: rewards need the columns",
}

RANGES = {  # what TRL would meet only after the model is loaded, or not at all
    "temperature": (1e-3, 100),
    "top_p": (1e-3, 1),
    "learning_rate": (0, 1),
    "beta": (0, 1e3),
    "epsilon": (0, 1e3),
    "num_generations": (2, 1e6),
    "num_iterations": (1, 1e6),
    "per_device_train_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "max_completion_length": (1, 1e7),
}


@dataclass(frozen=True)
class EvalSpec:
    """The `eval:` part: which held-out problems, and whether to evaluate before and after training.

    The problems are all those of the training dataset at `split`, unless `dataset` here names others.
    """

    before_after: bool = False
    split: str = "test"
    max_samples: int | None = None
    batch_size: int = 32
    dataset: dict | None = None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `trainer` holds GRPOConfig's keys and `model` ModelConfig's, as given; `raw` is the whole
    mapping they came from."""

    source: Path
    datasets: list[DatasetSpec]
    template: PromptTemplate
    rewards: list[RewardSpec]
    eval: EvalSpec
    eval_dataset: DatasetSpec | None
    grading: PoolSettings
    trainer: dict
    model: dict
    raw: dict

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer["output_dir"])

    def dump(self) -> str:
        """The resolved recipe as YAML that can be run again, from the beginning."""
        kept = {key: value for key, value in self.raw.items() if key != "resume_from_checkpoint"}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def load_recipe(argv: list[str]) -> Recipe:
    """Read, merge and check; raises UserError with every problem, one a line."""
    path, overrides = parse_arguments(argv)
    raw = merge(read_recipe(path), overrides)
    raw["output_dir"] = raw.get("output_dir") or f"runs/{path.stem}"
    problems: list[str] = []
    trainer_keys, model_keys = trl_keys()
    flat = check_flat(raw, {**trainer_keys, **model_keys}, problems)
    datasets = check_datasets(raw.get("dataset"), problems)
    template = check_template("boxed" if raw.get("prompt_template") is None else raw["prompt_template"], problems)
    rewards = check_rewards(raw.get("rewards"), problems)
    spec, eval_dataset = check_eval(raw, datasets, problems)
    grading = check_grading(raw.get("grading") or {}, problems)
    if template and template.stop and flat.get("mask_truncated_completions"):
        problems.append(
            f"mask_truncated_completions: TRL takes a completion that ends at a stop string {list(template.stop)} for "
            "a truncated one and would mask them all: set it to false, or use a template without stop strings"
        )
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    trainer = {key: value for key, value in flat.items() if key in trainer_keys}
    model = {key: value for key, value in flat.items() if key in model_keys}
    return Recipe(path, datasets, template, rewards, spec, eval_dataset, grading, trainer, model, raw)


def check_flat(raw: dict, known: Keys, problems: list[str]) -> dict:
    """TRL's keys. A key of ours is only a name here, for the suggestions."""
    given = {key: value for key, value in raw.items() if key not in OURS}
    problems += [f"{key}: not a key here: {REFUSED[key]}" for key in given if key in REFUSED]
    given = {key: value for key, value in given.items() if key not in REFUSED}
    known = {**dict.fromkeys(OURS, ""), **known, "resume_from_checkpoint": "str | bool | None"}
    flat = check_keys(given, known, "", problems, RENAMED)
    for key, (low, high) in RANGES.items():
        if isinstance(flat.get(key), int | float) and not low <= flat[key] <= high:
            problems.append(f"{key}: want a number from {low:g} to {high:g}, got {flat[key]}")
    if not flat.get("model_name_or_path"):
        problems.append("model_name_or_path: missing: give a local folder or a Hub id")
    return flat


def check_datasets(given, problems: list[str]) -> list[DatasetSpec]:
    if not given:
        problems.append("dataset: missing: write dataset: {name: gsm8k}")
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
    shared = fields_of(DatasetSpec, "params")
    checked = check_keys(entry, {**shared, **(dict.fromkeys(entry, "") if own is None else own)}, where, problems)
    at_least_one(checked, where, problems)
    params = {key: checked.pop(key) for key in list(checked) if key not in shared}
    return [DatasetSpec(**checked, params=params)]


def at_least_one(checked: dict, where: str, problems: list[str]) -> None:
    for key in ("max_samples", "max_prompt_tokens", "batch_size", "size"):
        if checked.get(key) is not None and checked[key] < 1:
            problems.append(f"{where}{key}: want at least 1, got {checked[key]}")


def looks_local(path: str) -> bool:
    return Path(path).suffix.lower() in FILE_READERS or path.startswith((".", "/", "~"))


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
    specs = []
    for name, entry in given.items():
        where = f"rewards.{name}."
        if entry is False:  # switched off, by an extending recipe or on the command line
            continue
        if not isinstance(entry, dict | None):
            problems.append(f"rewards.{name}: want a mapping such as {{weight: 1.0}}, or false, got {entry!r}")
            continue
        entry = entry or {}
        if entry.get("path") is not None:
            own = reference_keys(str(entry["path"]), where + "path", problems)
        elif name in REWARDS:
            own = parameters(REWARDS[name])
        else:
            known = suggestion(str(name), list(REWARDS), "", {})
            problems.append(f"rewards.{name}: no shipped reward, {known} (your own: path: my_rewards.py:function)")
            continue
        own = dict.fromkeys(entry, "") if own is None else own
        keys = {key: kind for key, kind in own.items() if key not in RESERVED_COLUMNS}
        shared = fields_of(RewardSpec, "name", "params")
        checked = check_keys(entry, {**shared, **keys}, where, problems)
        params = {key: checked.pop(key) for key in list(checked) if key not in shared}
        specs.append(RewardSpec(name, **checked, params=params))
    if not problems and not any(spec.weight for spec in specs):
        problems.append("rewards: none has a weight other than 0: there is nothing to learn from")
    return specs


def check_eval(raw: dict, datasets: list[DatasetSpec], problems: list[str]) -> tuple[EvalSpec, DatasetSpec | None]:
    given = raw.get("eval") or {}
    if not isinstance(given, dict):
        problems.append(f"eval: want a mapping such as {{before_after: true}}, got {given!r}")
        return EvalSpec(), None
    checked = check_keys(given, fields_of(EvalSpec), "eval.", problems)
    at_least_one(checked, "eval.", problems)
    spec = EvalSpec(**checked)
    asked = {"split": spec.split, "max_samples": spec.max_samples}
    if spec.dataset:
        given = {key: value for key, value in spec.dataset.items() if value is not None}
        checked = check_dataset(asked | given, "eval.dataset.", problems)
        if checked and any(same_rows(checked[0], trained) for trained in datasets):
            problems.append("eval.dataset: these are the training problems: name others, or another split")
        return spec, checked[0] if checked else None
    if len(datasets) != 1:
        if spec.before_after and datasets:
            problems.append("eval.dataset: missing: with several training datasets, name the one to evaluate on")
        return spec, None
    trained = datasets[0]
    if trained.name and trained.path and Path(trained.path).is_file():
        if spec.before_after:
            problems.append(f"eval.dataset: missing: {trained.path} is one file, and the training itself reads it")
        return spec, None
    if spec.before_after and spec.split == trained.split:
        problems.append(f"eval.split: {spec.split} is what the training reads: name another split")
    return spec, DatasetSpec(trained.name, trained.path, config=trained.config, params=trained.params, **asked)


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


def same_rows(one: DatasetSpec, other: DatasetSpec) -> bool:
    return (one.name, one.path, one.split, one.config) == (other.name, other.path, other.split, other.config) or (
        one.path is not None and one.path == other.path and Path(one.path).is_file()
    )


def reference_keys(reference: str, where: str, problems: list[str]) -> Keys | None:
    """The parameters of the function `file.py:function` names; None where only importing it would tell."""
    try:
        module, name = split_reference(reference)
        source = source_file(module)
        keys = function_keys(source, name) if source else None
    except UserError as error:
        problems.append(f"{where}: {error}")
        return None
    if keys is None and module.endswith(".py"):
        problems.append(f"{where}: {module} has no function {name!r}")
    return keys


def fields_of(kind: type, *left_out: str) -> Keys:
    return {f.name: inspect.formatannotation(f.type) for f in fields(kind) if f.name not in left_out}


def required(function: Callable) -> list[str]:
    return [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
