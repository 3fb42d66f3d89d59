"""TRL's GRPOConfig and SFTConfig from a recipe, and whether this machine and these processes can run them."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

from grpo_math.data import ADAPTERS, Problem
from grpo_math.data.sources import hub_answers, in_hub_cache
from grpo_math.errors import WORKS_HERE, UserError, at_once, one_line
from grpo_math.evaluation import Benchmark
from grpo_math.generation import check_vllm, engine_arguments, fit_window, longest_sequence
from grpo_math.generation.vllm_engine import LARGE, check_parallel, colocated_engine
from grpo_math.generation.vllm_server import check_server, start_up
from grpo_math.models import ModelSource, end_tokens, load_arguments
from grpo_math.recipe import batch
from grpo_math.recipe.parts import is_hub_id
from grpo_math.recipe.recipe import Recipe
from grpo_math.recipe.trl import DEFAULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import GRPOConfig, SFTConfig


def trainer_arguments(recipe: Recipe) -> dict:
    """The arguments of GRPOConfig or SFTConfig: the recipe's own keys over our few defaults."""
    from trl import ModelConfig

    given = {key: value for key, value in recipe.trainer.items() if key != "resume_from_checkpoint"}
    if "project" in given:  # transformers tells only Trackio
        os.environ.setdefault("WANDB_PROJECT", given["project"])
    defaults = DEFAULTS | {"run_name": recipe.output_dir.name}
    model = ModelConfig(**recipe.model)
    load = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    load |= (given.get("model_init_kwargs") or {}) | {"use_safetensors": load_arguments(given)["use_safetensors"]}
    return defaults | given | {"model_init_kwargs": load}


def grpo_config(recipe: Recipe) -> "GRPOConfig":
    from trl import GRPOConfig

    arguments = trainer_arguments(recipe)
    stops = recipe.template.generation_kwargs(arguments.get("use_vllm", False))
    arguments["generation_kwargs"] = stops | (arguments.get("generation_kwargs") or {})
    arguments |= {"log_completions": recipe.completions.every != 0, "num_completions_to_print": 0}
    arguments["reward_weights"] = [spec.weight for spec in recipe.rewards]
    arguments |= batch.batch_arguments(arguments, recipe.prompts_per_step, batch.world_size())
    with one_line(f"{recipe.source}: TRL refused it"):
        return GRPOConfig(**arguments)


def sft_config(recipe: Recipe) -> "SFTConfig":
    from trl import SFTConfig

    with one_line(f"{recipe.source}: TRL refused it"):
        return SFTConfig(**{"completion_only_loss": True} | trainer_arguments(recipe))


def check_machine(recipe: Recipe) -> None:
    """Raise UserError with all that the recipe needs and this machine lacks, before a model is loaded."""
    import torch

    given = recipe.trainer
    at_once(
        lambda: check_16_bits(given),
        bool(given.get("use_vllm")) and (lambda: check_vllm(given)),
        reports_to_wandb(given) and check_wandb,
        lambda: check_hub(recipe),
        instead="" if torch.cuda.is_available() else WORKS_HERE,
    )


def check_16_bits(given: dict) -> None:
    from transformers.utils import is_torch_bf16_gpu_available

    bf16 = not given.get("fp16") if given.get("bf16") is None else given["bf16"]  # as in TRL
    if bf16 and not given.get("use_cpu") and not is_torch_bf16_gpu_available():
        raise UserError(
            "bf16: no GPU on this machine supports bfloat16: give --bf16 false, and without any GPU --use_cpu true"
        )


def check_hub(recipe: Recipe, kinds: tuple[str, ...] = ("model", "dataset")) -> None:
    """Raise UserError for every model and dataset (`kinds`) that is neither here nor in the Hub's cache, where the Hub
    does not answer or is not asked."""
    wanted = [("model", recipe.model.get("model_name_or_path"), "model_name_or_path")]
    wanted += [("model", spec.reward_model, f"rewards.{spec.name}.reward_model") for spec in recipe.rewards]
    for data in recipe.datasets + (recipe.eval_datasets if recipe.eval.wanted and recipe.eval.datasets else []):
        if (adapter := ADAPTERS.get(data.name or "")) and not adapter.generate:
            wanted.append(("dataset", data.path or adapter.hub, f"{data.where}path"))
    lacking = [
        f"{key}: the Hub is not reachable (or HF_HUB_OFFLINE is set), {name} is not in its cache: download it "
        f"and give its folder, {key}: FOLDER"
        for kind, name, key in wanted
        if kind in kinds and name and is_hub_id(name) and not hub_answers() and not in_hub_cache(kind, name)
    ]
    if lacking:
        raise UserError("\n".join(lacking))


def reports_to_wandb(given: dict) -> bool:
    """Whether `report_to`, a text or a list, asks for it."""
    report_to = given.get("report_to") or []
    return bool({"wandb", "all"} & set([report_to] if isinstance(report_to, str) else report_to))


def check_world(recipe: Recipe, config: "GRPOConfig | SFTConfig") -> None:
    """Raise UserError where accelerate came up with other processes than asked for, which it does without a word, or
    with a combination that trains something else. `config` is TRL's; nothing is loaded yet."""
    state, environment = config.distributed_state, os.environ
    asked = int(environment.get("GRPO_MATH_PROCESSES", state.num_processes))
    if state.num_processes != asked:
        raise UserError(
            f"launch: expected {asked} processes, accelerate started {state.num_processes}: check the layout's "
            "num_processes and distributed_type, and --config_file"
        )
    if config.n_gpu > 1:
        raise UserError(
            f"launch: one process sees {config.n_gpu} GPUs: use grpo-math launch, or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        if state.distributed_type.value in ("MULTI_CPU", "NO"):
            raise UserError("launch: accelerate replaces FSDP with DDP on CPUs: use multi_gpu, or zero2, zero3 there")
        beta = recipe.trainer.get("beta")
        if beta and environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true":
            raise UserError(
                f"beta: {beta} with FSDP needs the reference model, which would be loaded only on the first process: "
                "set fsdp_cpu_ram_efficient_loading: false in the accelerate config"
            )
    if recipe.tools or recipe.environment:
        check_turns(cast("GRPOConfig", config))
    quantised = recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit")
    if quantised and environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError("load_in_4bit, load_in_8bit: ZeRO-3 cannot shard quantised weights: use zero2 or multi_gpu")


def check_turns(config: "GRPOConfig") -> None:
    """Raise UserError where all processes generate together: TRL's loop takes as many turns as the completions of each
    process need, and those with fewer would leave the others waiting."""
    if config.distributed_state.num_processes == 1:
        return
    zero3 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    sharded = zero3 or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    reasons = {
        "vllm_mode: server": config.use_vllm and config.vllm_mode == "server",
        f"vllm_tensor_parallel_size: {config.vllm_tensor_parallel_size}": config.vllm_tensor_parallel_size > 1,
        "a sharded model (FSDP, ZeRO-3) without vLLM": sharded and not config.use_vllm,
    }
    if found := [reason for reason, true in reasons.items() if true]:
        raise UserError(
            f"tools: {found[0]} generates on all processes together, but conversations differ in the number of turns: "
            "use vllm_mode: colocate with vllm_tensor_parallel_size: 1, or one process"
        )


def check_wandb() -> None:
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    fix = "run `wandb login`, set WANDB_MODE=offline, or give --report_to none"
    with one_line("report_to: W&B rejects the API key", fix, (wandb.errors.Error,)):
        if not wandb.login(prompt=False, verify=False):
            raise UserError(f"report_to: W&B has no API key: {fix}")


def longest_generated(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    problems: list[Problem],
    benchmarks: list[Benchmark],
    server: bool,
) -> tuple[int, int]:
    """The longest prompt and completion, in tokens, of a training and its evaluations on vLLM's `server`, or on a
    colocated engine."""
    again = server and (recipe.tools or recipe.environment)
    turns = 2 if again else 1  # TRL asks for as much again after each tool result, a server refuses what may not fit
    generated = [(problems, turns * recipe.max_completion_length)]
    generated += [(benchmark.problems, recipe.eval_completion_length) for benchmark in benchmarks]
    return longest_sequence(generated, recipe.template, tokenizer)


def vllm_engine(
    recipe: Recipe,
    config: "GRPOConfig",
    tokenizer: "PreTrainedTokenizerBase",
    problems: list[Problem],
    benchmarks: list[Benchmark],
) -> AbstractContextManager:
    """Settle in `config` what vLLM runs with, and check it; the context is for building the trainer, whose colocated
    engine is started in it. Without vLLM there is nothing to do."""
    import torch

    if not config.use_vllm:
        return nullcontext()
    ends = end_tokens(ModelSource.of(recipe.keys), tokenizer)  # vLLM knows those of its own model
    given = config.generation_kwargs if isinstance(config.generation_kwargs, dict) else {}
    config.generation_kwargs = {"stop_token_ids": sorted(ends)} | given
    server = config.vllm_mode == "server"
    longest = longest_generated(recipe, tokenizer, problems, benchmarks, server)
    if server:
        config.vllm_server_timeout = start_up(recipe.keys)
        check_server(recipe.keys, recipe.engine, config, *longest)
        return nullcontext()
    check_parallel(recipe.keys, batch.world_size())
    config.vllm_max_model_length = fit_window(config.vllm_max_model_length, *longest)
    if "vllm_enable_sleep_mode" not in recipe.trainer:
        config.vllm_enable_sleep_mode = torch.cuda.is_available() and config.vllm_gpu_memory_utilization > LARGE
    return colocated_engine(engine_arguments(recipe.keys, recipe.engine), config.seed)
