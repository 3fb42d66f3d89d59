"""Read a YAML file and the command line into a checked `Recipe`, before anything heavy is imported.

All problems are reported at once, one line each. Keys are TRL's own (GRPOConfig, or SFTConfig where there is `sft:`;
ModelConfig) plus ours (parts.py); `extends: other.yaml` starts from another recipe.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_origin

import yaml
from pydantic import Field, create_model

from grpo_math.data.problem import DatasetSpec
from grpo_math.data.prompts import PromptTemplate
from grpo_math.errors import UserError, suggestion
from grpo_math.grading import PoolSettings
from grpo_math.recipe.checking import Part, options, takes_null, validated
from grpo_math.recipe.entries import dataset_specs, held_out_specs, reward_specs, tool_problems
from grpo_math.recipe.file import dotted, merge, nested, parse_arguments, read_recipe, without_secrets
from grpo_math.recipe.hints import BY_TRL, LOSSES, REFUSED, SAMPLING
from grpo_math.recipe.parts import (
    AlarmSpec,
    CompletionsSpec,
    EvalSpec,
    GrpoKeys,
    Ours,
    SftKeys,
    SftSpec,
    baseline_problems,
    model_folder,
    prompt_template,
)
from grpo_math.recipe.trl import DEFAULTS, RANGES, Key, class_fields, installed_folder, trl_keys
from grpo_math.rewards.reward import RewardSpec

CHOICES = {  # which TRL names only in the help, and looks at only after the first generation
    "loss_type": Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "scale_rewards": Literal["group", "batch", "none"],
    "importance_sampling_level": Literal["token", "sequence"],
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
    "vllm_mode": Literal["colocate", "server"],
    "vllm_model_impl": Literal["vllm", "transformers"],
    "vllm_importance_sampling_mode": Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
    "dtype": Literal["auto", "bfloat16", "float16", "float32"],
    "log_level": Literal["detail", "debug", "info", "warning", "error", "critical", "passive"],
    "log_level_replica": Literal["detail", "debug", "info", "warning", "error", "critical", "passive"],
}
FILES = ("accelerator_config", "deepspeed", "fsdp_config")  # mappings that may be the path of a JSON file
NO_RECIPE = {"output_dir": "runs", "dtype": "auto", "bf16": False}  # an evaluation's: the model unchanged


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Its attributes are the parts of the recipe of that name, and these:

    Attributes:
        trainer: The keys of GRPOConfig or SFTConfig, as given.
        model: The keys of ModelConfig, as given.
        raw: The whole mapping that was read, with the overrides.
        sft: The part `sft`, None in a GRPO recipe.
        rewards: One entry per reward; empty in an SFT recipe.
        engine: Further arguments of vLLM's engine.
        rounds: The rounds of dynamic sampling, 1 without it.
    """

    source: Path
    datasets: list[DatasetSpec]
    template: PromptTemplate
    rewards: list[RewardSpec]
    sft: SftSpec | None
    eval: EvalSpec
    eval_datasets: list[DatasetSpec]
    grading: PoolSettings
    baseline: str
    prompts_per_step: int | None
    rounds: int
    engine: dict
    alarms: AlarmSpec
    completions: CompletionsSpec
    on_reward_error: str
    tools: list[str]
    environment: str | None
    preflight: bool
    trainer: dict
    model: dict
    raw: dict

    @property
    def keys(self) -> dict:
        """TRL's keys as given, the trainer's and the model's."""
        return self.trainer | self.model

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer["output_dir"])

    @property
    def max_completion_length(self) -> int:
        """The longest completion of the training, in tokens."""
        return self.trainer.get("max_completion_length") or 512  # TRL's default

    @property
    def num_generations(self) -> int:
        """Completions per group; TRL's default is 8."""
        return self.trainer.get("num_generations") or 8

    @property
    def eval_completion_length(self) -> int:
        """The longest completion of an evaluation, in tokens."""
        return self.eval.max_completion_length or self.max_completion_length

    def dump(self) -> str:
        """The resolved recipe as YAML that can be run again, from the beginning."""
        kept = {key: value for key, value in self.raw.items() if key != "resume_from_checkpoint"}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


@cache
def recipe_keys(kind: str) -> type[Part]:
    """All keys of a recipe of this kind, GRPO or SFT: ours, the trainer's, the model's."""
    trainer, model = trl_keys(kind)
    resume = Key(str | bool | None, None, "A checkpoint's folder, or `auto`: the newest of output_dir.")
    every = trainer | model | {"resume_from_checkpoint": resume}
    fields: dict[str, Any] = {name: trl_field(name, key) for name, key in every.items()}
    base: type[Ours] = GrpoKeys if kind == "GRPO" else SftKeys
    return create_model(f"{kind} recipe", __base__=base, **fields)


def trl_field(name: str, key: Key) -> tuple[Any, Any]:
    kinds = options(key.type if get_origin(key.type) is Literal else CHOICES.get(name, key.type))
    if name in RANGES:  # null means the default
        kinds = [kind for kind in kinds if kind is not NoneType]
    # A mapping may be a text in TRL: JSON, on its command line
    if name not in FILES and dict in [get_origin(kind) or kind for kind in kinds]:
        kinds = [kind for kind in kinds if kind is not str]
    default = DEFAULTS.get(name, key.default)
    return Union[tuple(kinds)], Field(default, description=key.help or None, **RANGES.get(name, {}))  # noqa: UP007


def load_recipe(config: Recipe | str | Path | list[str], kind: str | None = None, **overrides: Any) -> Recipe:
    """Read and check a recipe: `load_recipe("recipes/x.yaml", learning_rate=2e-6, dataset={"max_samples": 100})`.

    Args:
        config: The path of a recipe, the name of a shipped one, or the words of a command line (`--config FILE --key
            value ...`). A `Recipe` is returned unchanged.
        kind: `GRPO` or `SFT`, if only such a recipe is accepted. An `evaluation` needs no training problems, no rewards
            and no recipe file.
        **overrides: Keys of the recipe to replace; mappings are merged key by key.

    Returns:
        The checked recipe.

    Raises:
        UserError: With every problem of the recipe, one per line.
    """
    if isinstance(config, Recipe):
        if overrides:
            raise TypeError(f"{', '.join(overrides)}: give the recipe's file to replace keys of it")
        return config
    words = config if isinstance(config, list) else ["--config", str(config)]
    given: dict = {}
    for name, value in overrides.items():
        given = merge(given, nested(name, str(value) if isinstance(value, Path) else value))
    recipe, problems = resolve(words, kind, given)
    if problems:
        where = f"{recipe.source}: "
        raise UserError("\n".join(one if one.startswith("--") else f"{where}{one}" for one in problems))
    return recipe


def resolve(argv: list[str], kind: str | None = None, overrides: dict | None = None) -> tuple[Recipe, list[str]]:
    """The recipe as far as it can be understood, and everything that is wrong with it."""
    path, given = parse_arguments(argv)
    evaluation = kind == "evaluation"
    if path is None and not evaluation:
        raise UserError("no recipe: give one with --config recipes/X.yaml")
    raw = merge(merge(read_recipe(path) if path else NO_RECIPE, given), overrides or {})
    path = path or Path("command line")
    found = "SFT" if "sft" in raw else "GRPO"
    if kind not in (None, "evaluation", found):
        fix = "run it with grpo-math sft" if found == "SFT" else "run it with grpo-math train, or add sft: to it"
        raise UserError(f"{path}: a recipe for {found}, not for {kind}: {fix}")
    raw["output_dir"] = raw.get("output_dir") or f"runs/{path.stem}"
    found_secrets: list[str] = []
    raw = without_secrets(raw, "", found_secrets)
    problems = [
        f"{key}: a secret would be saved in the run folder: set it in the environment (HF_TOKEN, WANDB_API_KEY, or a "
        "variable that your own code reads)"
        for key in found_secrets
    ]
    keys, flat = check_keys(raw, found, problems)
    datasets = [] if evaluation and not raw.get("dataset") else dataset_specs(raw.get("dataset"), problems)
    template = prompt_template("boxed" if raw.get("prompt_template") is None else raw["prompt_template"], problems)
    unscored = evaluation and not (keys.eval.rewards and raw.get("rewards"))
    rewards = [] if found == "SFT" or unscored else reward_specs(raw.get("rewards"), problems)
    eval_datasets = held_out_specs(keys.eval, datasets, not evaluation, problems)
    problems += eval_problems(keys.eval)
    grpo = keys if isinstance(keys, GrpoKeys) else GrpoKeys()
    problems += [*baseline_problems(grpo, flat), *engine_problems(grpo.vllm_engine_kwargs)]
    problems += generation_problems(flat, grpo.vllm_engine_kwargs, template)
    problems += tool_problems(grpo, flat, template, rewards)
    trainer, model = trl_keys(found)
    recipe = Recipe(
        source=path,
        datasets=datasets,
        template=template,  # type: ignore[arg-type]  # None only with a problem
        rewards=rewards,
        sft=keys.sft if isinstance(keys, SftKeys) else None,
        eval=keys.eval,
        eval_datasets=eval_datasets,
        grading=PoolSettings(**keys.grading.model_dump()),
        baseline=grpo.baseline,
        prompts_per_step=grpo.prompts_per_step,
        rounds=grpo.dynamic_sampling.rounds if grpo.dynamic_sampling else 1,
        engine=grpo.vllm_engine_kwargs,
        alarms=keys.alarms,
        completions=grpo.completions,
        on_reward_error=grpo.on_reward_error,
        tools=grpo.tools,
        environment=grpo.environment,
        preflight=keys.preflight,
        trainer={key: value for key, value in flat.items() if key in trainer},
        model={key: value for key, value in flat.items() if key in model},
        raw=raw,
    )
    return recipe, [from_command_line(problem, given) for problem in problems]


def from_command_line(problem: str, given: dict) -> str:
    """The problem with a key, named as an option where that is how it was `given`, and so is the key that was meant."""
    if not any(re.match(rf"{re.escape(name)}(?!\w)", problem) for name, _ in dotted(given)):
        return problem
    return f"--{problem}".replace("unknown key, did you mean ", "unknown key, did you mean --")


def check_keys(raw: dict, kind: str, problems: list[str]) -> tuple[Any, dict]:
    """Ours as the recipe's model, and TRL's as given, without nulls that mean the default."""
    model, other = recipe_keys(kind), "SFT" if kind == "GRPO" else "GRPO"
    refused = REFUSED.keys() & raw.keys()
    unknown = raw.keys() - model.model_fields.keys() - refused
    foreign = unknown & recipe_keys(other).model_fields.keys() if unknown else set()
    problems += [f"{key}: not supported, {REFUSED[key]}" for key in raw if key in refused]
    problems += [
        f"{key}: a key of {other} recipes, but this one is for {kind} ({'it has' if kind == 'SFT' else 'no'} sft:)"
        for key in raw
        if key in foreign
    ]
    given = {key: value for key, value in raw.items() if key not in refused | foreign}
    if given.get("loss_type") in LOSSES:
        problems.append(f"loss_type: unknown value {given['loss_type']!r}: {LOSSES[given.pop('loss_type')]}")
    keys = validated(model, given, "", problems)
    flat = {  # 0 for a float is 0.0
        key: getattr(keys, key)
        for key, value in given.items()
        if key in keys.model_fields_set and (value is not None or takes_null(model, key))
    }
    lora = [key for key, value in flat.items() if key.startswith("lora_") and value is not None]
    if lora and "use_peft" not in raw:
        problems.append(f"{', '.join(lora)}: no effect without LoRA: set use_peft: true as well")
    if "max_steps" in flat and flat["max_steps"] < 1 and flat["max_steps"] != -1:
        problems.append(f"max_steps: expected at least 1 (or -1 for num_train_epochs), got {flat['max_steps']}")
    if not flat.get("model_name_or_path"):
        problems.append("model_name_or_path: missing, give a local folder or a Hub id")
    else:
        flat["model_name_or_path"] = model_folder(flat["model_name_or_path"])
    return keys, flat


def eval_problems(spec: EvalSpec) -> Iterator[str]:
    if spec.best and not spec.wanted:
        yield "eval.best: needs evaluations: add every: 20"
    for name in ("stop_at", "patience"):
        if getattr(spec, name) is not None and spec.every is None:
            yield f"eval.{name}: needs evaluations during the training: add every: 20"
    if spec.samples > 1 and spec.temperature == 0:
        yield (
            f"eval.samples: {spec.samples} greedy completions of a problem are identical: set temperature: 0.7, "
            "or samples: 1"
        )
    for k in spec.k or []:
        if not 1 <= k <= spec.samples:
            yield f"eval.k: pass@{k} needs at least {k} samples, got {spec.samples}: raise samples"


def engine_problems(given: dict) -> Iterator[str]:
    """`vllm_engine_kwargs` has arguments of vLLM's EngineArgs, by name. Their values are vLLM's to judge."""
    try:
        known = list(class_fields(installed_folder("vllm") / "engine" / "arg_utils.py", "EngineArgs"))
    except UserError:
        known = list(given)
    for key in given:
        where = "vllm_engine_kwargs."
        if key in BY_TRL:
            yield f"{where}{key}: {'' if ':' in BY_TRL[key] else 'set it with '}{BY_TRL[key]}"
        elif key not in known:
            yield f"{where}{key}: unknown key, {suggestion(str(key), known, where, {})}"


def generation_problems(flat: dict, engine: dict, template: PromptTemplate | None) -> Iterator[str]:
    """Keys that contradict each other or have unintended effects."""
    if template and template.stop and flat.get("mask_truncated_completions"):
        yield (
            f"mask_truncated_completions: TRL treats a completion that ends at a stop string {list(template.stop)} as "
            "truncated, and would mask them all: set it to false, or use a template without stop strings"
        )
    if "trust_remote_code" in (flat.get("model_init_kwargs") or ()):
        yield "model_init_kwargs.trust_remote_code: use trust_remote_code, which covers the tokenizer and vLLM too"
    for key in flat.get("generation_kwargs") or ():
        if key in SAMPLING:
            yield f"generation_kwargs.{key}: {SAMPLING[key]}"
    for key in ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict", "return_tensors"):
        if key in (flat.get("chat_template_kwargs") or ()):
            yield f"chat_template_kwargs.{key}: not a variable of the chat template, TRL sets it: leave it out"
    if not flat.get("use_vllm"):
        return
    if flat.get("load_in_4bit") or flat.get("load_in_8bit"):
        yield (
            "use_vllm: vLLM cannot update the weights of a quantised model: set it to false, or drop load_in_4bit and "
            "load_in_8bit"
        )
    computed = trainer_dtype(flat)
    if engine.get("dtype", computed) != computed:
        yield (
            f"vllm_engine_kwargs.dtype: {engine['dtype']}, but the trainer computes in {computed} (bf16, fp16, dtype): "
            "leave it out, the engine follows the trainer"
        )


def trainer_dtype(keys: dict) -> str:
    """What a trainer with these keys of TRL's computes in; `auto` is the checkpoint's own."""
    if keys.get("fp16"):
        return "float16"
    return "bfloat16" if keys.get("bf16") in (None, True) else keys.get("dtype", "float32")
