"""A run's checkpoints: written aside and renamed when whole, found again, thinned out."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.recipe.batch import is_main_process
from grpo_math.recipe.file import dotted, read_yaml
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs.folder import is_running, to_disk

KEPT = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")  # by an optimizer's state
ASIDE = ".unfinished"  # in the run folder: checkpoints being written or deleted
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
WRITER = re.compile("I/O error|iostream error|inline_container")  # safetensors' and torch's word for any of them


class WholeCheckpoints:
    """For TRL's trainers: a checkpoint has its name only when all of it is on the disk, on every process.

    Metrics reach the disk before it, so that none is missing that a resumed run will not write again.
    """

    writing = False

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / ASIDE) if self.writing else folder

    def _save_checkpoint(self, model, trial):
        folder, step = Path(self.args.output_dir), self.state.global_step
        with writes_to(folder, f"checkpoint-{step}"):
            self.writing = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.writing = False
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(folder / ASIDE / f"checkpoint-{step}", folder / f"checkpoint-{step}")
                thin_out(folder, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / f"checkpoint-{step}"))

    def _push_from_checkpoint(self, checkpoint_folder):
        if not self.writing:
            super()._push_from_checkpoint(checkpoint_folder)

    def _run_epoch(self, **arguments):
        """A run that was killed between its last step and its end has nothing left to train."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**arguments)

    def _issue_warnings_after_load(self, load_result):
        """A tied head is saved once, and not missing."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *_, **__) -> None:
        """TRL's names no base model and no result; the final model gets ours."""

    def save_whole(self, folder: Path, facts: Callable[[Path], None] = lambda written: None) -> None:
        """The model under this name in the run folder, with what `facts` writes beside it, when all of it is there."""
        written = folder.parent / ASIDE / folder.name
        with writes_to(folder.parent, folder.name):
            self.save_model(str(written), _internal_call=True)  # which pushes nothing
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (written / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads, with local paths
                facts(written)
                publish(written, folder)
        self.accelerator.wait_for_everyone()


def publish(written: Path, target: Path) -> None:
    """Give a written folder its name, once it and all metrics are on the disk."""
    for path in [*target.parent.glob("*.jsonl"), *written.rglob("*"), written]:
        to_disk(path)
    discard(target)
    written.rename(target)
    to_disk(target.parent)
    with contextlib.suppress(OSError):  # another one is being written
        written.parent.rmdir()


def thin_out(folder: Path, limit: int | None) -> None:
    """Keep the last `limit` checkpoints (`save_total_limit`). The best model is none of them: it is in best/."""
    steps = sorted(complete_checkpoints(folder)) if limit else []
    for step in steps[: -limit if limit else None]:
        discard(folder / f"checkpoint-{step}")


def discard(folder: Path) -> None:
    """Delete it, without a moment in which half of it is there under its name."""
    if folder.exists():
        aside = folder.parent / ASIDE / f"old-{folder.name}"
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def writes_to(folder: Path, what: str = "the run") -> Iterator[None]:
    """Turn a disk that refuses into one line that says where the run can go on."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        if not folder.exists():
            raise UserError(f"{folder} is gone: nothing of this run is left to continue from") from error
        if getattr(error, "errno", None) not in REFUSALS and not WRITER.search(text):
            raise
        reason = (
            getattr(error, "strerror", None) or f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are left on its disk"
        )
        raise UserError(f"{folder}: cannot write {what} ({reason}): {last_good(folder)}") from error


def last_good(folder: Path) -> str:
    found = last_whole(folder)
    if not found:
        return "when that is mended, begin again: there is no checkpoint yet"
    return f"when that is mended, continue from {found} with --resume_from_checkpoint auto"


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The run's checkpoints by their step."""
    found = {}
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if checkpoint.name == f"checkpoint-{state['global_step']}":
            found[state["global_step"]] = checkpoint
    return found


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint whose files are whole, too; of a later one that is damaged it says so."""
    for _, checkpoint in sorted(complete_checkpoints(folder).items(), reverse=True):
        if not (file := damaged(checkpoint)):
            return checkpoint
        print(f"{file}: damaged, its checkpoint is left out")
    return None


def damaged(checkpoint: Path) -> Path | None:
    """A file of it that is not whole."""
    return next((file for file in checkpoint.rglob("*") if not whole(file)), None)


def whole(file: Path) -> bool:
    """Whether weights or states are all there, by their table of contents; any other file is."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="np"):
                return True
        except (SafetensorError, OSError):
            return False
    return file.suffix not in (".pt", ".pth") or zipfile.is_zipfile(file)


def find_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means: `auto` (or true) is the last whole one, if any.

    Raises UserError for a checkpoint that is not there, for settings that its optimizer would not take over, and rather
    than overwrite a run: one that nobody asked to continue, or a finished one that has nothing to continue from.
    """
    checkpoint = wanted_checkpoint(recipe)
    for key, (before, now) in other_settings(recipe, checkpoint).items():
        if key in KEPT:
            raise UserError(
                f"{key}: the run began with {before}, and its checkpoint's optimizer stays with that, not {now}: "
                f"restore it, or begin another run with --model_name_or_path {checkpoint} and its own --output_dir"
            )
    return checkpoint


def other_settings(recipe: Recipe, checkpoint: Path | None) -> dict[str, tuple]:
    """What the run of this checkpoint was last told otherwise: before and now, by the key with its dots."""
    file = checkpoint and checkpoint.parent / "recipe.yaml"
    if not file or not file.exists():
        return {}
    before, now = (dict(dotted(raw)) for raw in (read_yaml(file), recipe.raw))
    keys = [key for key in before | now if key not in ("output_dir", "resume_from_checkpoint")]
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return {key: (before.get(key, "its default"), now.get(key, "its default")) for key in changed}


def wanted_checkpoint(recipe: Recipe) -> Path | None:
    folder, wanted = recipe.output_dir, recipe.trainer.get("resume_from_checkpoint")
    if is_main_process() and folder.exists() and is_running(folder):
        raise UserError(f"output_dir: a training is at work in {folder}: wait for it, end it, or name another folder")
    finished = (folder / "results.json").exists() or (folder / "final").exists()
    metrics = folder / "metrics.jsonl"
    started = metrics.exists() and metrics.stat().st_size > 0
    if wanted in ("auto", True):
        found = last_whole(folder)
        if not found and finished:
            raise UserError(f"{folder} holds a finished run without a checkpoint: give another --output_dir")
        if not found and is_main_process():
            print(f"{folder}: no checkpoint to continue from: beginning at step 0")
        return found
    complete = complete_checkpoints(folder)
    if wanted:
        chosen = Path(wanted)
        if not (chosen / "trainer_state.json").exists():
            there = ", ".join(str(complete[step]) for step in sorted(complete)) or "none"
            raise UserError(f"resume_from_checkpoint: {wanted} is no complete checkpoint (there: {there}): or say auto")
        if file := damaged(chosen):
            raise UserError(f"resume_from_checkpoint: {file} is damaged: name another checkpoint, or say auto")
        return chosen
    if complete or finished or started:
        raise UserError(
            f"{folder} already holds a run: continue it with --resume_from_checkpoint auto, or give another "
            "--output_dir"
        )
    return None


def checkpoint_step(checkpoint: Path | None) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints after a step from which a run begins anew: they belong to what is made again. What was
    half-written goes, what was about to be replaced comes back."""
    if not (folder / "best").exists() and (folder / ASIDE / "old-best").exists():
        (folder / ASIDE / "old-best").rename(folder / "best")
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    for later, checkpoint in complete_checkpoints(folder).items():
        if later > step:
            aside = folder / f"abandoned-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


def finished_results(recipe: Recipe, checkpoint: Path | None, config) -> dict | None:
    """The results of a finished run, and say so; None if there is work left."""
    if checkpoint is None:
        return None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    same_epochs = state["num_train_epochs"] == math.ceil(config.num_train_epochs)
    max_steps = config.max_steps if config.max_steps > 0 else state["max_steps"] if same_epochs else math.inf
    done = state["global_step"]
    if done < max_steps:
        return None
    results = recipe.output_dir / "results.json"
    if not results.exists():
        if done > max_steps:
            raise UserError(f"max_steps: {checkpoint} is {done - max_steps} steps further than {max_steps}: raise it")
        return None  # killed before its end
    found = json.loads(results.read_text())
    if os.environ.get("LOCAL_RANK", "0") == "0":
        more = "more max_steps or num_train_epochs train on"
        print(f"{recipe.output_dir}: already finished, {found['steps']} steps ({more})")
    return found
