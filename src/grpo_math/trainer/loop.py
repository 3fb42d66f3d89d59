"""The training loop that a GRPO run and an SFT run share: the folder made ready, the steps, how they ended."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers import PrinterCallback, Trainer

from grpo_math.errors import RewardError, UserError, one_line, reason_of
from grpo_math.runs import checkpoints
from grpo_math.runs import folder as run_folder
from grpo_math.trainer import trackers
from grpo_math.trainer.alarms import Alarms
from grpo_math.trainer.callbacks import CompletionLogs, Evaluations, MetricsFile
from grpo_math.trainer.checkpoints import Abandoned, NothingLeft, Resume, SaveWhole, StopOnSignal, unfinished
from grpo_math.trainer.course import NOT_FINITE
from grpo_math.trainer.progress import Progress
from grpo_math.trainer.trainer import Trainer as OurGRPOTrainer

logger = logging.getLogger("grpo_math.train")


def begin(trainer: Trainer, checkpoint: Path | None, settings: dict, recipe: str, fingerprint: str) -> dict:
    """Make the run folder that of a run from this checkpoint on, and return what environment.json holds; {} on all
    processes but the first. `settings` is the recipe as written, `recipe` the text of recipe.yaml."""
    if not trainer.is_world_process_zero():
        return {}
    folder, step = Path(trainer.args.output_dir or ""), checkpoints.checkpoint_step(checkpoint)
    if checkpoint:
        others = checkpoints.other_settings(checkpoint, settings).items()
        told = ", ".join(f"{key} {now} (it was {before})" for key, (before, now) in others)
        logger.info("continuing from %s%s", checkpoint, f" with other settings: {told}" if told else "")
        if not checkpoints.recipe_of(checkpoint):
            logger.info("warning: the checkpoint's run has no recipe.yaml: its learning rate and optimizer are kept")
        saved, processes = len(list(checkpoint.glob("rng_state*.pth"))), trainer.args.world_size
        if saved != processes:
            logger.info("warning: %d processes resume a checkpoint of %d: the samples will differ", processes, saved)
    environment = run_folder.write_facts(folder, recipe, fingerprint, checkpoint)
    checkpoints.set_aside(folder, step)
    (folder / "results.json").unlink(missing_ok=True)  # which means that the run is finished
    checkpoints.discard(folder / "final")  # an earlier end's, which its checkpoint has too
    trackers.join(trainer, folder, step)
    return environment


def run(
    trainer: Trainer,
    evaluations: Evaluations,
    alarms: Alarms,
    checkpoint: Path | None,
    again: str,
    every: int | None = None,
) -> dict:
    """Train from the checkpoint (or step 0) to the last step, and return what results.json holds: steps, before, after,
    best, stopped, seconds; {} where a signal stopped the run before, `again` being the command that resumes it.

    The completions of one step in `every` are kept. Raises UserError where an alarm or a reward function stopped it.
    """
    folder, limit = Path(trainer.args.output_dir or ""), trainer.args.save_total_limit
    stride = steps_per_batch(trainer.args)
    if stride > 1:
        logger.info("checkpoints are saved at the end of a generation batch, every %d steps", stride)
    trainer.args.save_total_limit = None  # SaveWhole's: transformers deletes the last one before the next is complete
    trainer.remove_callback(PrinterCallback)  # Progress reports instead
    logging.getLogger("transformers.trainer").addFilter(not_of_a_tied_head)
    refused = one_line(f"resume_from_checkpoint: {checkpoint}", "resume from another", (UnpicklingError,))
    started = time.perf_counter()
    with (
        StopOnSignal() as stop,
        Progress(alarms, evaluations) as progress,
        failed_batch(folder),
        refused,
        suppress(Abandoned),
    ):
        if isinstance(trainer, OurGRPOTrainer):
            trainer.add_callback(CompletionLogs(trainer, stride, every))
        saving = SaveWhole(trainer, stride, limit)
        evaluations.stopped = lambda: stop.agreed(trainer.args.device)
        metrics = MetricsFile(folder)
        for callback in (metrics, evaluations, stop, saving, alarms, progress):
            trainer.add_callback(callback)
        trainer.add_callback(Resume(trainer, checkpoint))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NothingLeft:
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except (ImportError, TypeError, ValueError) as error:
            if metrics.begun:
                raise
            raise UserError(f"TRL refused the recipe: {reason_of(error)}") from error
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):  # torch.multinomial's word for logits of NaN
                raise
            alarms.stopped = f"nan: the logits of the policy are not finite: {NOT_FINITE}"
    alarms.check()
    step, spent = trainer.state.global_step, time.perf_counter() - started
    if stop.told or unfinished(trainer.state):
        logger.info("stopped after step %d, which is saved. Continue with: %s", step, again)
        return {}
    times = {"train": spent - evaluations.seconds, "evaluate": evaluations.seconds}
    seconds = {name: round(value, 2) for name, value in times.items()}
    return checkpoints.Results(steps=step, **evaluations.found(), seconds=seconds)


def not_of_a_tied_head(record: logging.LogRecord) -> bool:
    """A head that is tied to the embeddings is not in a checkpoint, and not missing."""
    return "missing keys in the checkpoint model loaded: ['lm_head.weight']" not in record.getMessage()


def steps_per_batch(args: Any) -> int:
    """The optimizer steps that one generation batch is trained on; an SFT run has none."""
    if not hasattr(args, "num_generations"):
        return 1
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


@contextmanager
def failed_batch(folder: Path) -> Iterator[None]:
    """Keep the completions on which a reward function failed, in failed_batch.json."""
    try:
        yield
    except RewardError as error:
        run_folder.write_json(error.batch, folder / "failed_batch.json")
        kept = folder / "failed_batch.json"
        raise RewardError(
            f"{error}, or leave them out with on_reward_error: skip (what it was given: {kept})"
        ) from error
