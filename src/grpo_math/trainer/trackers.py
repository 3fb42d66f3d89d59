"""What transformers' callbacks leave out for the trackers in `report_to`: the completions, and one TensorBoard folder.

Every metric reaches W&B, trackio and TensorBoard through transformers, a training step's as `train/X` and an
evaluation's as `eval/X`.
"""

import functools
import re
from pathlib import Path

SHOWN = 16  # rows of a step that TensorBoard gets


def log_completions(trainer, rows: list[dict], step: int) -> None:
    """Send the completions of one training step, on the main process; the rows of a run have the same columns."""
    senders = {"wandb": to_wandb, "trackio": to_trackio, "tensorboard": to_tensorboard}
    for tracker in trainer.args.report_to:
        if tracker in senders:
            senders[tracker](trainer, rows, step)


def to_wandb(trainer, rows: list[dict], step: int) -> None:
    """One table that grows: W&B is sent the new rows."""
    import wandb

    table = wandb_table(wandb.run, tuple(rows[0]))
    for row in rows:
        table.add_data(*row.values())
    wandb.log({"completions": table, "train/global_step": step})


@functools.lru_cache(maxsize=1)
def wandb_table(run, columns: tuple[str, ...]):
    import wandb

    return wandb.Table(columns=list(columns), log_mode="INCREMENTAL")


def to_trackio(trainer, rows: list[dict], step: int) -> None:
    import trackio

    trackio.log({"completions": trackio.Table(data=rows), "train/global_step": step})


def to_tensorboard(trainer, rows: list[dict], step: int) -> None:
    tensorboard_callback(trainer).tb_writer.add_text("completions", markdown_table(rows[:SHOWN]), step)


def join_tensorboard(trainer, folder: Path, step: int) -> None:
    """Have TensorBoard's events in FOLDER/tensorboard; those after `step`, where a run is resumed, count no more."""
    from torch.utils.tensorboard import SummaryWriter

    callback = tensorboard_callback(trainer)
    log_dir = callback.logging_dir or folder / "tensorboard"
    callback.tb_writer = SummaryWriter(str(log_dir), purge_step=step + 1)


def tensorboard_callback(trainer):
    from transformers.integrations import TensorBoardCallback

    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, TensorBoardCallback))


def markdown_table(rows: list[dict]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[markdown_cell(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_cell(value) -> str:
    """Text that no sign in it can turn into Markdown or HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return "<br>".join(re.sub(r"[^\w\s]|_", lambda sign: f"&#{ord(sign[0])};", line) for line in text.splitlines())
