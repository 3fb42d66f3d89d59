"""One YAML file and the command line become one checked `Recipe`, before anything heavy is imported.

All problems are reported at once, one line each. Keys are TRL's own (GRPOConfig, or SFTConfig where there is `sft:`;
ModelConfig) plus ours (recipe_parts.py); `extends: other.yaml` starts from another recipe.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_math.data.problem import DatasetSpec
from grpo_math.data.prompts import PromptTemplate
from grpo_math.errors import UserError
from grpo_math.grading import PoolSettings
from grpo_math.recipe.eval import EvalSpec, check_eval
from grpo_math.recipe.file import merge, parse_arguments, read_recipe
from grpo_math.recipe.parts import (
    AlarmSpec,
    CompletionsSpec,
    SftSpec,
    check_alarms,
    check_completions,
    check_datasets,
    check_grading,
    check_rewards,
    check_sft,
    check_template,
)
from grpo_math.recipe.safety import check_safety
from grpo_math.recipe.schema import check_keys, trl_keys
from grpo_math.recipe.vllm import check_engine, check_generation
from grpo_math.rewards.reward import RewardSpec

OURS = {
    "GRPO": (
        "extends", "dataset", "prompt_template", "rewards", "eval", "grading", "baseline", "prompts_per_step",
        "vllm_engine_kwargs", "alarms", "preflight", "completions", "on_reward_error",
    ),
    "SFT": ("extends", "dataset", "prompt_template", "sft", "eval", "grading", "alarms", "preflight"),
}  # fmt: skip
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
    "evaluation_strategy": "eval: {every: 10}",
    "overwrite_output_dir": "another output_dir, or resume_from_checkpoint: auto",
    "reward_funcs": "rewards: {correctness: {weight: 1.0}}",
    "dataset_name": "dataset: {name: gsm8k}",
    "dataset_config": "dataset: {config: main}",
    "dataset_train_split": "dataset: {split: train}",
    "vllm_device": "vllm_mode: colocate or server",
    "train_batch_size": "prompts_per_step (each of num_generations completions)",
    "rollout_batch_size": "prompts_per_step (each of num_generations completions)",
}
REFUSED = {
    "log_completions": "use completions: {every: 10}: files, trackers and the report then have them",
    "log_completions_hub_repo": "use completions: {every: 10}, which keeps them in the run's folder",
    "log_unique_prompts": "use completions: {every: 10}",
    "num_completions_to_print": "use completions: {every: 10}, and grpo-math report",
    "reward_weights": "give the weight beside the reward, rewards: {correctness: {weight: 1.0}}",
    "eval_strategy": "use eval: {every: 10}",
    "eval_steps": "use eval: {every: 10}",
    "do_eval": "use eval: {before_after: true}",
    "eval_on_start": "use eval: {before_after: true}",
    "hub_token": "set HF_TOKEN in the environment, so that no file keeps it",
    "remove_unused_columns": "leave it out: rewards need the columns",
    "chat_template_path": "save the template in the model's folder, so that SFT, GRPO and evaluation see the same",
    "dataset_text_field": "use dataset: {name: json, fields: {question: COLUMN, worked: COLUMN}}",
}

RANGES = {  # what TRL would meet only after the model is loaded, or not at all
    "temperature": (1e-3, 100),
    "top_p": (1e-3, 1),
    "learning_rate": (0, 1),
    "beta": (0, 1e3),
    "epsilon": (0, 1e3),
    "num_generations": (2, 1e6),
    "num_iterations": (1, 1e6),
    "steps_per_generation": (1, 1e6),
    "per_device_train_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "max_completion_length": (1, 1e7),
    "save_steps": (1e-6, 1e9),
}
NO_RECIPE = {"output_dir": "runs", "dtype": "auto", "bf16": False}  # an evaluation's: the model as it is
DTYPES = ("auto", "bfloat16", "float16", "float32")
CHOICES = {  # TRL's own, which it looks at only after the first generation
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `trainer` holds GRPOConfig's (or SFTConfig's) keys and `model` ModelConfig's, as given; `raw`
    is the whole mapping they came from. `sft` is None in a GRPO recipe, and `rewards` is empty in one for SFT.
    `engine` are arguments for vLLM's engine."""

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
    engine: dict
    alarms: AlarmSpec
    completions: CompletionsSpec
    on_reward_error: str
    preflight: bool
    trainer: dict
    model: dict
    raw: dict

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer["output_dir"])

    @property
    def max_completion_length(self) -> int:
        """The longest completion of the training, in tokens."""
        return self.trainer.get("max_completion_length") or 512  # TRL's default

    @property
    def eval_completion_length(self) -> int:
        """The longest completion of an evaluation, in tokens."""
        return self.eval.max_completion_length or self.max_completion_length

    def dump(self) -> str:
        """The resolved recipe as YAML that can be run again, from the beginning."""
        kept = {key: value for key, value in self.raw.items() if key != "resume_from_checkpoint"}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def load_recipe(argv: list[str], kind: str | None = None) -> Recipe:
    """Read, merge and check; raises UserError with every problem, one a line.

    `kind` is GRPO or SFT where only such a recipe will do. An `evaluation` trains nothing: it needs no training
    problems and no rewards, and no recipe file either.
    """
    recipe, problems = resolve(argv, kind)
    if problems:
        raise UserError("\n".join(f"{recipe.source}: {problem}" for problem in problems))
    return recipe


def resolve(argv: list[str], kind: str | None = None) -> tuple[Recipe, list[str]]:
    """The recipe as far as it can be understood, and everything that is wrong with it."""
    path, overrides = parse_arguments(argv)
    evaluation = kind == "evaluation"
    if path is None and not evaluation:
        raise UserError("no recipe: give one with --config recipes/X.yaml")
    raw = merge(read_recipe(path) if path else NO_RECIPE, overrides)
    path = path or Path("command line")
    found = "SFT" if "sft" in raw else "GRPO"
    if kind not in (None, "evaluation", found):
        fix = "run it with grpo-math sft" if found == "SFT" else "run it with grpo-math train, or write sft: into it"
        raise UserError(f"{path}: a recipe for {found}, not for {kind}: {fix}")
    raw["output_dir"] = raw.get("output_dir") or f"runs/{path.stem}"
    problems: list[str] = []
    check_safety(raw, problems)
    trainer_keys, model_keys = trl_keys(f"{found}Config")
    flat = check_flat(raw, found, problems)
    datasets = [] if evaluation and not raw.get("dataset") else check_datasets(raw.get("dataset"), problems)
    template = check_template("boxed" if raw.get("prompt_template") is None else raw["prompt_template"], problems)
    rewards = [] if found == "SFT" or evaluation else check_rewards(raw.get("rewards"), problems)
    sft = check_sft(raw["sft"], problems) if found == "SFT" else None
    spec, eval_datasets = check_eval(raw, datasets, not evaluation, problems)
    grading = check_grading(raw.get("grading") or {}, problems)
    baseline = check_baseline(raw.get("baseline"), flat, problems)
    prompts = check_prompts(raw.get("prompts_per_step"), problems)
    engine = check_engine(raw.get("vllm_engine_kwargs"), problems)
    check_generation(flat, engine, template, problems)
    alarms = check_alarms(raw.get("alarms") or {}, problems)
    completions = check_completions(raw.get("completions") or {}, problems)
    on_reward_error = raw.get("on_reward_error") or "stop"
    if on_reward_error not in ("stop", "skip"):
        problems.append(f"on_reward_error: want stop or skip, got {on_reward_error!r}")
    preflight = raw.get("preflight", True)
    if not isinstance(preflight, bool):
        problems.append(f"preflight: want true or false, got {preflight!r}")
    trainer = {key: value for key, value in flat.items() if key in trainer_keys}
    model = {key: value for key, value in flat.items() if key in model_keys}
    recipe = Recipe(
        source=path,
        datasets=datasets,
        template=template,
        rewards=rewards,
        sft=sft,
        eval=spec,
        eval_datasets=eval_datasets,
        grading=grading,
        baseline=baseline,
        prompts_per_step=prompts,
        engine=engine,
        alarms=alarms,
        completions=completions,
        on_reward_error=on_reward_error,
        preflight=preflight,
        trainer=trainer,
        model=model,
        raw=raw,
    )
    return recipe, problems


def check_flat(raw: dict, kind: str, problems: list[str]) -> dict:
    """TRL's keys. A key of ours is only a name here, for the suggestions."""
    other = "SFT" if kind == "GRPO" else "GRPO"
    trainer_keys, model_keys = trl_keys(f"{kind}Config")
    known = {
        **dict.fromkeys(OURS[kind], ""),
        **trainer_keys,
        **model_keys,
        "resume_from_checkpoint": "str | bool | None",
    }
    foreign = {*OURS[other], *trl_keys(f"{other}Config")[0]} - known.keys()
    given = {key: value for key, value in raw.items() if key not in OURS[kind]}
    problems += [f"{key}: not a key here: {REFUSED[key]}" for key in given if key in REFUSED]
    problems += [
        f"{key}: a key of {other} recipes, and this one is for {kind} ({'it has' if kind == 'SFT' else 'no'} sft:)"
        for key in given
        if key in foreign - REFUSED.keys()
    ]
    given = {key: value for key, value in given.items() if key not in foreign | REFUSED.keys()}
    flat = check_keys(given, known, "", problems, RENAMED)
    flat = {key: value for key, value in flat.items() if value is not None or key not in RANGES}  # null: the default
    for key, (low, high) in RANGES.items():
        if isinstance(flat.get(key), int | float) and not low <= flat[key] <= high:
            problems.append(f"{key}: want a number from {low:g} to {high:g}, got {flat[key]}")
    for key, choices in CHOICES.items() if kind == "GRPO" else ():
        if flat.get(key, choices[0]) not in choices:
            problems.append(f"{key}: no {flat[key]!r}: use one of {', '.join(choices)}")
    if flat.get("dtype", "auto") not in DTYPES:
        problems.append(f"dtype: no {flat['dtype']!r}: use one of {', '.join(DTYPES)}")
    lora = [key for key, value in flat.items() if key.startswith("lora_") and value is not None]
    if lora and "use_peft" not in raw:
        problems.append(f"{', '.join(lora)}: without effect on a whole model: set use_peft: true as well")
    if not flat.get("model_name_or_path"):
        problems.append("model_name_or_path: missing: give a local folder or a Hub id")
    else:
        flat["model_name_or_path"] = model_folder(os.path.expanduser(flat["model_name_or_path"]))
    return flat


def model_folder(path: str) -> str:
    """A run's folder means its final model; every other folder or Hub id means itself."""
    final = os.path.join(path, "final")
    return final if os.path.isdir(final) and not os.path.exists(os.path.join(path, "config.json")) else path


def check_prompts(given, problems: list[str]) -> int | None:
    """`prompts_per_step`, on all processes together."""
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        problems.append(f"prompts_per_step: want a whole number of 1 or more, got {given!r}")
        return None
    return given


def check_baseline(given, flat: dict, problems: list[str]) -> str:
    """`group` (GRPO) or `none` (plain REINFORCE), which nothing must normalise afterwards."""
    if given in (None, "group"):
        return "group"
    if given != "none":
        problems.append(f"baseline: want group or none, got {given!r}")
        return "group"
    wanted = {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize"}
    for key, value in wanted.items():
        if flat.setdefault(key, value) != value:
            problems.append(f"{key}: {flat[key]} normalises by a mean, which baseline: none does without: leave it out")
    return "none"
