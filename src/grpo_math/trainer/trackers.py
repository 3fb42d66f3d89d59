"""One W&B run and one TensorBoard folder for a run that is resumed; all else is transformers' and TRL's."""

from pathlib import Path

from transformers import Trainer

from grpo_math.runs.folder import name_wandb_run


def join(trainer: Trainer, folder: Path, step: int) -> None:
    """Have the trackers in `report_to` continue what an earlier start of this run sent them, up to `step`."""
    if "wandb" in trainer.args.report_to:
        name_wandb_run(folder)
    if "tensorboard" in trainer.args.report_to:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        plain = trainer.pop_callback(TensorBoardCallback)
        log_dir = str(plain.logging_dir or folder / "tensorboard")
        trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir, purge_step=step + 1)))
