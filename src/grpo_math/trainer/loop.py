"""The training loop that a GRPO run and an SFT run share, with its beginning and end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from grpo_math.data import Problem, fingerprint
from grpo_math.errors import RewardError, one_line
from grpo_math.models.models import widen
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs import checkpoints
from grpo_math.runs import folder as run_folder
from grpo_math.trainer import trackers

TILE_ON_CPU = (512, 2048)  # tokens and vocabulary entries that stay in a core's cache (docs/performance.md)
logger = logging.getLogger("grpo_math.train")


@contextmanager
def failed_batch(folder: Path) -> Iterator[None]:
    """Keep the completions on which a reward function failed, in failed_batch.json."""
    try:
        yield
    except RewardError as error:
        run_folder.write_json(error.batch, folder / "failed_batch.json")
        kept = folder / "failed_batch.json"
        raise RewardError(f"{error}, or go on with on_reward_error: skip (what it was given: {kept})") from error


def run(
    recipe: Recipe, trainer, problems: list[Problem], measured, checkpoint, started: float, write_card, push
) -> dict:
    """Train from the checkpoint (or the beginning) to the end, and return what results.json holds: steps, before,
    after, seconds; {} where it was stopped before. The seconds are this process's, and evaluating is not training."""
    from transformers import PrinterCallback
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

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
