"""What a GRPO run and an SFT run share: TRL's settings, the problems, and the loop with its beginning and end."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from grpo_math.data.problem import Problem, fingerprint
from grpo_math.errors import RewardError, UserError, one_line
from grpo_math.generation.vllm_engine import check_vllm
from grpo_math.models.models import widen
from grpo_math.models.safety import load_arguments
from grpo_math.recipe import batch
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs import checkpoints
from grpo_math.runs import folder as run_folder
from grpo_math.trainer import trackers

TILE_ON_CPU = (512, 2048)  # tokens and vocabulary entries that stay in a core's cache (docs/performance.md)
logger = logging.getLogger("grpo_math.train")


def trainer_arguments(recipe: Recipe) -> dict:
    """The arguments of GRPOConfig or SFTConfig: the recipe's own keys over our few defaults."""
    from trl import ModelConfig

    given = {key: value for key, value in recipe.trainer.items() if key != "resume_from_checkpoint"}
    check_machine(given)
    if "project" in given:  # transformers tells only Trackio
        os.environ.setdefault("WANDB_PROJECT", given["project"])
    # transformers would log the mean of earlier losses in place of a NaN
    defaults = {
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "hub_strategy": "end",  # any other pushes the whole run folder
        "disable_tqdm": True,
        "run_name": recipe.output_dir.name,
    }
    model = ModelConfig(**recipe.model)
    load = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    load |= (given.get("model_init_kwargs") or {}) | {"use_safetensors": load_arguments(given)["use_safetensors"]}
    return defaults | given | {"model_init_kwargs": load}


def grpo_config(recipe: Recipe):
    from trl import GRPOConfig

    arguments = trainer_arguments(recipe)
    stops = recipe.template.generation_kwargs(arguments.get("use_vllm", False))
    arguments["generation_kwargs"] = stops | (arguments.get("generation_kwargs") or {})
    arguments["reward_weights"] = [spec.weight for spec in recipe.rewards]
    arguments |= batch.batch_arguments(arguments, recipe.prompts_per_step, batch.world_size())
    with one_line(f"{recipe.source}: TRL refused it"):
        return GRPOConfig(**arguments)


def sft_config(recipe: Recipe):
    from trl import SFTConfig

    with one_line(f"{recipe.source}: TRL refused it"):
        return SFTConfig(**{"completion_only_loss": True} | trainer_arguments(recipe))


def check_machine(given: dict) -> None:
    """Raise UserError for what the recipe wants and this machine lacks, before a model is loaded."""
    from transformers.utils import is_torch_bf16_gpu_available

    if given.get("bf16", True) and not given.get("use_cpu") and not is_torch_bf16_gpu_available():
        raise UserError("bf16: there is no GPU here that can: give --bf16 false, and without any GPU --use_cpu true")
    if given.get("use_vllm"):
        check_vllm()
    report_to = given.get("report_to") or []
    if {"wandb", "all"} & set([report_to] if isinstance(report_to, str) else report_to):
        check_wandb()


def check_world(recipe: Recipe, config) -> None:
    """Raise UserError where accelerate came up with other processes than asked for, which it does without a word, or
    with a combination that trains something else. `config` is TRL's; nothing is loaded yet."""
    state, environment = config.distributed_state, os.environ
    asked = int(environment.get("GRPO_MATH_PROCESSES", state.num_processes))
    if state.num_processes != asked:
        raise UserError(
            f"launch: {asked} processes were asked for, accelerate started {state.num_processes}: check the layout's "
            "num_processes and distributed_type, and --config_file"
        )
    if config.n_gpu > 1:
        raise UserError(
            f"launch: one process sees {config.n_gpu} GPUs: use grpo-math launch, or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        if state.distributed_type.value in ("MULTI_CPU", "NO"):
            raise UserError("launch: accelerate makes DDP of FSDP on CPUs: use multi_gpu, or zero2, zero3 there")
        beta = recipe.trainer.get("beta")
        if beta and environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true":
            raise UserError(
                f"beta: {beta} with FSDP measures against a reference model that was never loaded on all processes but "
                "the first: set fsdp_cpu_ram_efficient_loading: false in the accelerate config"
            )
    quantised = recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit")
    if quantised and environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError("load_in_4bit, load_in_8bit: ZeRO-3 cannot shard rounded weights: use zero2 or multi_gpu")


def check_wandb() -> None:
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    fix = "run `wandb login`, set WANDB_MODE=offline, or give --report_to none"
    with one_line("report_to: W&B refuses the API key", fix, (wandb.errors.Error,)):
        if not wandb.login(prompt=False, verify=False):
            raise UserError(f"report_to: W&B knows no API key: {fix}")


@contextmanager
def failed_batch(folder: Path) -> Iterator[None]:
    """Keep the completions on which a reward function failed, in failed_batch.json."""
    try:
        yield
    except RewardError as error:
        run_folder.write_json(error.batch, folder / "failed_batch.json")
        kept = folder / "failed_batch.json"
        raise RewardError(f"{error}, or go on with on_reward_error: skip (what it was given: {kept})") from error


def run(recipe: Recipe, trainer, problems: list[Problem], measured, checkpoint, started: float) -> dict:
    """Train from the checkpoint (or the beginning) to the end, and return what results.json holds: steps, before,
    after, seconds; {} where it was stopped before. The seconds are this process's, and evaluating is not training."""
    from transformers import PrinterCallback
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from grpo_math.report.model_card import push, write_card
    from grpo_math.trainer.alarms import Alarms
    from grpo_math.trainer.callbacks import StopOnSignal, unfinished
    from grpo_math.trainer.progress import Progress

    trainer.remove_callback(PrinterCallback)  # Progress speaks instead
    if trainer.accelerator.device.type == "cpu":
        chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE_ON_CPU
    if recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit"):
        widen(trainer.model, recipe.model["model_name_or_path"])
    measured.trainer = trainer
    folder, main_process = recipe.output_dir, trainer.is_world_process_zero()
    with checkpoints.writes_to(folder):
        environment = begin(recipe, trainer, problems, checkpoint) if main_process else {}
        training, alarms = time.perf_counter(), Alarms(recipe)
        resume = one_line(f"resume_from_checkpoint: {checkpoint}", "resume from another", (UnpicklingError,))
        with StopOnSignal() as stop, Progress(alarms) as progress, failed_batch(folder), resume:
            for callback in (alarms, progress, stop):
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        alarms.check()
        if unfinished(trainer.state):
            again = run_folder.resume_command(recipe)
            logger.info(
                "stopped after step %d, all of it is saved. Continue with: %s", trainer.state.global_step, again
            )
            return {}
        results = {"steps": trainer.state.global_step, **measured.found()}
        trainer.save_whole(folder / "final", lambda written: write_card(recipe, written, results, environment))
        now = time.perf_counter()
        seconds = {"train": now - training - measured.seconds, "evaluate": measured.seconds, "total": now - started}
        results["seconds"] = rounded(seconds)
        if main_process:
            run_folder.write_json(results, folder / "results.json")
            logger.info("run folder: %s (the model is in final/)", folder)
            push(trainer, folder / "final")
        return results


def begin(recipe: Recipe, trainer, problems: list[Problem], checkpoint: Path | None) -> dict:
    """Make the folder that of a run from this checkpoint on, and return what environment.json holds."""
    folder = recipe.output_dir
    step = checkpoints.checkpoint_step(checkpoint)
    if checkpoint:
        others = checkpoints.other_settings(recipe, checkpoint).items()
        told = ", ".join(f"{key} {now} (it was {before})" for key, (before, now) in others)
        logger.info("continuing from %s%s", checkpoint, f" with other settings: {told}" if told else "")
    environment = run_folder.write_facts(recipe, fingerprint(problems))
    checkpoints.set_aside(folder, step)
    (folder / "results.json").unlink(missing_ok=True)  # it says that the run is finished
    if "wandb" in trainer.args.report_to:
        run_folder.name_wandb_run(folder)
    if "tensorboard" in trainer.args.report_to:
        trackers.join_tensorboard(trainer, folder, step)
    return environment


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in seconds.items()}
