"""The checkpoints in a run folder: found, checked, kept complete, thinned out. Folder operations; no trainer."""

import contextlib
import errno
import json
import math
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_math.errors import UserError
from grpo_math.recipe.batch import is_main_process
from grpo_math.recipe.file import dotted, read_yaml
from grpo_math.runs.folder import is_running, to_disk

KEPT = {  # by a checkpoint: settings of its optimizer and of its adapter
    *("optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("use_peft", "use_dora", "use_rslora", "lora_r", "lora_alpha", "lora_target_modules", "lora_modules_to_save"),
}
ASIDE = ".unfinished"  # in the run folder: what is being written, replaced or deleted, by its name
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
WRITER = re.compile("I/O error|iostream error|inline_container")  # safetensors' and torch's word for any of them
PARTS = {  # by the names of transformers, FSDP and DeepSpeed; transformers silently resets what is missing
    "weights": ("*model*.safetensors", "pytorch_model*", "adapter_model.bin", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "scheduler": ("scheduler.pt", "global_step*"),
    "random state": ("rng_state*.pth",),
}


def announce(checkpoint: Path) -> None:
    """Note on the disk that a checkpoint is about to be written; until `completed` it does not count as one."""
    mark = checkpoint.parent / ASIDE / checkpoint.name
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    to_disk(mark.parent)


def completed(checkpoint: Path) -> None:
    """The checkpoint counts from here on. All of it is on the disk first, and so are the metrics up to its step."""
    flush(checkpoint)
    (checkpoint.parent / ASIDE / checkpoint.name).unlink(missing_ok=True)
    tidy(checkpoint.parent)


def publish(written: Path, target: Path) -> None:
    """Rename a written folder to its final name, once it and all metrics are on the disk."""
    flush(written, target.parent)
    discard(target)
    written.rename(target)
    to_disk(target.parent)
    tidy(target.parent)


def flush(written: Path, run_folder: Path | None = None) -> None:
    for path in [*(run_folder or written.parent).glob("*.jsonl"), *written.rglob("*"), written]:
        to_disk(path)


def tidy(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something else is being written
        (folder / ASIDE).rmdir()


def discard(folder: Path) -> None:
    """Delete a folder; there is no moment in which half of it is left under its name."""
    if folder.exists():
        aside = folder.parent / ASIDE / f"old-{folder.name}"
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        tidy(folder.parent)


def thin_out(folder: Path, limit: int | None) -> None:
    """Keep the last `limit` checkpoints (`save_total_limit`), all of them without a limit."""
    for step in sorted(complete_checkpoints(folder))[: -limit if limit else 0]:
        discard(folder / f"checkpoint-{step}")


def set_aside(folder: Path, step: int) -> None:
    """Prepare the folder for a run that starts at this step: later checkpoints are renamed, since they belong to steps
    that are trained again; half-written ones are deleted; a best/ that was about to be replaced comes back."""
    if not (folder / "best").exists() and (folder / ASIDE / "old-best").exists():
        (folder / ASIDE / "old-best").rename(folder / "best")
    for unfinished in (folder / ASIDE).glob("checkpoint-*"):
        shutil.rmtree(folder / unfinished.name, ignore_errors=True)
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    for later, checkpoint in complete_checkpoints(folder).items():
        if later > step:
            aside = folder / f"abandoned-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


@contextlib.contextmanager
def writes_to(folder: Path) -> Iterator[None]:
    """Turn a disk that refuses to be written to into one line that names the checkpoint to resume from."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not folder.exists():
            raise UserError(f"{folder} was deleted: there is nothing to resume from") from error
        if getattr(error, "errno", None) not in REFUSALS and not WRITER.search(str(error)):
            raise
        left = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are left on its disk"
        found = last_whole(folder)
        then = (
            f"continue from {found} with --resume_from_checkpoint auto" if found else "start again, no checkpoint yet"
        )
        reason = getattr(error, "strerror", None) or left
        raise UserError(f"{folder}: cannot write the run ({reason}): fix that, then {then}") from error


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The run's checkpoints by their step: trainer_state.json is there, which is written last, and `completed`."""
    return {step: checkpoint for step, checkpoint in saved_checkpoints(folder).items() if has_state(checkpoint)}


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """Those with a damaged trainer_state.json too."""
    found = {}
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        name = state.parent.name
        if re.fullmatch(r"checkpoint-\d+", name) and not (folder / ASIDE / name).exists():
            found[int(name.partition("-")[2])] = state.parent
    return found


def has_state(checkpoint: Path) -> bool:
    try:
        checkpoint_step(checkpoint)
    except (KeyError, OSError, TypeError, ValueError):
        return False
    return True


def checkpoint_step(checkpoint: Path | None) -> int:
    return (
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] if checkpoint else 0
    )


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that a run can resume from; a later one with a fault is reported."""
    for _, checkpoint in sorted(saved_checkpoints(folder).items(), reverse=True):
        if not (fault := fault_of(checkpoint)):
            return checkpoint
        if is_main_process():
            print(f"{fault}: skipping its checkpoint")
    return None


def fault_of(checkpoint: Path) -> str:
    """A file that is cut short, by its table of contents, or a part that is missing; nothing where all is whole."""
    for file in checkpoint.rglob("*"):
        if not whole(file):
            return f"{file} is damaged"
    if not has_state(checkpoint):
        return f"{checkpoint}/trainer_state.json is damaged"
    missing = [part for part, names in PARTS.items() if not any(any(checkpoint.glob(name)) for name in names)]
    return f"{checkpoint} has no {' and no '.join(missing)}" if missing else ""


def whole(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="np"):
                return True
        except (SafetensorError, OSError):
            return False
    return file.suffix not in (".pt", ".pth") or zipfile.is_zipfile(file)


def find_checkpoint(folder: Path, wanted: str | bool | None, settings: dict) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names; `auto` (or true) is the last whole one, None without any.

    `settings` is the recipe as written. Raises UserError for a checkpoint that is not there, for settings that its
    optimizer would not take over, and where a run would be overwritten: one that was not to be resumed, or a finished
    one without a checkpoint.
    """
    checkpoint = wanted_checkpoint(folder, wanted)
    if checkpoint and (before := recipe_of(checkpoint)) and ("sft" in before) != ("sft" in settings):
        kinds = ("an SFT run", "GRPO") if "sft" in before else ("a GRPO run", "SFT")
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} is of {kinds[0]}: start {kinds[1]} with --model_name_or_path "
            f"{checkpoint} and another --output_dir"
        )
    adapter = checkpoint and (checkpoint / "adapter_config.json").exists()  # whose base model is not in the checkpoint
    for key, (before, now) in other_settings(checkpoint, settings).items():
        if key in KEPT or (key == "model_name_or_path" and adapter):
            raise UserError(
                f"{key}: the checkpoint was saved with {before} and cannot resume with {now}: restore it, or "
                f"start a new run with --model_name_or_path {checkpoint} and another --output_dir"
            )
    return checkpoint


def recipe_of(checkpoint: Path) -> dict:
    """The recipe of this checkpoint's run as written; {} where the checkpoint is no longer in its folder."""
    file = checkpoint.parent / "recipe.yaml"
    return read_yaml(file) if file.exists() else {}


def other_settings(checkpoint: Path | None, settings: dict) -> dict[str, tuple]:
    """What differs from the recipe of this checkpoint's run: before and now, by the key with its dots."""
    found = checkpoint and recipe_of(checkpoint)
    return differences(found, settings) if found else {}


def differences(first: dict, second: dict) -> dict[str, tuple]:
    """What differs between two recipes as written: both values, by the key with its dots."""
    before, now = (dict(dotted(raw)) for raw in (first, second))
    keys = [key for key in before | now if key not in ("output_dir", "resume_from_checkpoint")]
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return {key: (before.get(key, "its default"), now.get(key, "its default")) for key in changed}


def wanted_checkpoint(folder: Path, wanted: str | bool | None) -> Path | None:
    if is_main_process() and folder.exists() and is_running(folder):
        raise UserError(f"output_dir: a training is running in {folder}: wait for it, stop it, or use another folder")
    finished = (folder / "results.json").exists() or (folder / "final").exists()
    metrics = folder / "metrics.jsonl"
    if wanted in ("auto", True):
        found = last_whole(folder)
        if not found and (complete := saved_checkpoints(folder)):
            raise UserError(
                f"resume_from_checkpoint: no checkpoint in {folder} is complete: if its weights are, start a new run "
                f"with --model_name_or_path {complete[max(complete)]}; or remove them to start at step 0"
            )
        if not found and finished:
            raise UserError(f"{folder} holds a finished run without a checkpoint: give another --output_dir")
        if not found and is_main_process():
            print(f"{folder}: no checkpoint to resume from, starting at step 0")
        return found
    complete = complete_checkpoints(folder)
    if wanted:
        chosen = Path(str(wanted))
        if not (chosen / "trainer_state.json").exists():
            there = ", ".join(str(complete[step]) for step in sorted(complete)) or "none"
            raise UserError(
                f"resume_from_checkpoint: {wanted} is not a complete checkpoint: name one (there: {there}), or use auto"
            )
        if fault := fault_of(chosen):
            raise UserError(
                f"resume_from_checkpoint: {fault}: name another checkpoint, or use auto; if its weights are complete, "
                f"start a new run with --model_name_or_path {chosen}"
            )
        return chosen
    if complete or finished or (metrics.exists() and metrics.stat().st_size):
        raise UserError(
            f"{folder} already holds a run: continue it with --resume_from_checkpoint auto, or give another "
            "--output_dir"
        )
    return None


class Results(dict[str, Any]):
    """What results.json holds. In a notebook it shows a line for each evaluation."""

    def __repr__(self) -> str:
        rows = {name: self[name] for name in ("before", "after", "best") if name in self}
        rows |= {row["dataset"]: row for row in self.get("evaluations", [])}
        lines = [f"{name}: {self[name]}" for name in ("steps", "stopped") if name in self]
        for name, row in rows.items():
            interval = f"95 % interval {row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}"
            lines.append(f"{name}: accuracy {row['accuracy']:.3f} ({interval}), {row['problems']:,} problems")
        return "\n".join([*lines, f"keys: {', '.join(self)}"])


def finished_results(folder: Path, checkpoint: Path | None, settings: dict, steps: int, epochs: float) -> dict | None:
    """The results of a finished run, and say so; None if there is work left. `settings` is the recipe as written,
    `steps` TRL's max_steps (-1: as many as the `epochs` have)."""
    if checkpoint is None:
        return None
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    done, last = state["global_step"], float(steps)
    results = folder / "results.json"
    found = Results(json.loads(results.read_text(encoding="utf-8")) if results.exists() else {})
    if found.get("stopped") and found["steps"] == done:
        if {"eval.stop_at", "eval.patience"} & other_settings(checkpoint, settings).keys():
            return None
        return told(folder, found, f"{found['stopped']}; change that key to train on")
    if steps <= 0:
        last = state["max_steps"] if state["num_train_epochs"] == math.ceil(epochs) else math.inf
    if done < last:
        return None
    if not found:
        if done > last:
            raise UserError(f"max_steps: {last:g}, but {checkpoint} is already at step {done:g}: raise it")
        return None  # killed before its end
    return told(folder, found, "raise max_steps or num_train_epochs to train on")


def told(folder: Path, results: dict, how: str) -> dict:
    if is_main_process():
        print(f"{folder}: already finished, {results['steps']} steps ({how})")
    return results
