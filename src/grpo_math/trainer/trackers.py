"""One W&B run and one TensorBoard folder for a run that is resumed; all else is transformers' and TRL's."""

import os
from pathlib import Path

from transformers import Trainer

from grpo_math.runs.folder import name_wandb_run


def join(trainer: Trainer, folder: Path, step: int) -> None:
    """Have the trackers in `report_to` continue what an earlier start of this run sent them, up to `step`."""
    trackers = trainer.args.report_to or []
    if "wandb" in trackers:
        name_wandb_run(folder)
    if "tensorboard" in trackers:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.remove_callback(TensorBoardCallback)
        log_dir = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(folder / "tensorboard")
        trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir, purge_step=step + 1)))
