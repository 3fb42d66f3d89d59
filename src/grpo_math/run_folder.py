"""What a run leaves behind: OUTPUT_DIR with recipe.yaml, environment.json, training.log, metrics.jsonl, eval.jsonl,
completions/, checkpoint-*, final/ and results.json."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.recipe import Recipe

PACKAGES = ("grpo-math", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "math-verify", "vllm")


def find_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means: `auto` (or true) is the last complete one, if any.

    Raises UserError for a checkpoint that is not there, and rather than overwrite a run: one that nobody asked to
    continue, or a finished one that has nothing to continue from.
    """
    folder, wanted = recipe.output_dir, recipe.trainer.get("resume_from_checkpoint")
    complete = complete_checkpoints(folder)
    finished = (folder / "results.json").exists() or (folder / "final").exists()
    metrics = folder / "metrics.jsonl"
    started = metrics.exists() and metrics.stat().st_size > 0
    if wanted in ("auto", True):
        if not complete and finished:
            raise UserError(f"{folder} holds a finished run without a checkpoint: give another --output_dir")
        if not complete and os.environ.get("RANK", "0") == "0":
            print(f"{folder}: no checkpoint to continue from: beginning at step 0")
        return complete[max(complete)] if complete else None
    if wanted:
        if not (Path(wanted) / "trainer_state.json").exists():
            there = ", ".join(str(complete[step]) for step in sorted(complete)) or "none"
            raise UserError(f"resume_from_checkpoint: {wanted} is no complete checkpoint (there: {there}): or say auto")
        return Path(wanted)
    if complete or finished or started:
        raise UserError(
            f"{folder} already holds a run: continue it with --resume_from_checkpoint auto, or give another "
            "--output_dir"
        )
    return None


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The run's checkpoints by their step. transformers writes trainer_state.json last: one without, or with half of
    it, is still being written."""
    found = {}
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if checkpoint.name == f"checkpoint-{state['global_step']}":
            found[state["global_step"]] = checkpoint
    return found


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints after a step from which a run begins anew: they belong to what is made again."""
    for later, checkpoint in complete_checkpoints(folder).items():
        if later > step:
            aside = folder / f"abandoned-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


def finished_results(recipe: Recipe, checkpoint: Path | None, config) -> dict | None:
    """The results of a run whose last step is already made, and say so; None if there is work left.

    TRL would train one step more.
    """
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
        raise UserError(f"{checkpoint} is the run's last step ({done} of {max_steps}): use it, or raise max_steps")
    found = json.loads(results.read_text())
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{recipe.output_dir}: already finished, {found['steps']} steps")
    return found


def write_facts(recipe: Recipe, dataset_fingerprint: str) -> None:
    """Write recipe.yaml and environment.json, before anything is trained. A resumed run must have the same problems."""
    folder = recipe.output_dir
    earlier = folder / "environment.json"
    if recipe.trainer.get("resume_from_checkpoint") and earlier.exists():
        before = json.loads(earlier.read_text())["dataset_fingerprint"]
        if before != dataset_fingerprint:
            raise UserError(
                f"resume_from_checkpoint: the run began with other problems (fingerprint {before}, now "
                f"{dataset_fingerprint}): restore the dataset keys of {folder}/recipe.yaml"
            )
    (folder / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    facts = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_revision": git_revision(),
        "dataset_fingerprint": dataset_fingerprint,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "packages": versions(),
    }
    write_json(facts, folder / "environment.json")


def open_folder(folder: Path) -> None:
    """Make the folder and send all logs to its training.log; the console gets plain messages.

    Only the first process speaks; the others keep to warnings on the console.
    """
    quiet_progress_bars()
    main_process = os.environ.get("RANK", "0") == "0"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "training.log", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder} ({error.strerror}): give another --output_dir") from None
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.INFO if main_process else logging.WARNING)
    ours = logging.getLogger("grpo_math")
    ours.handlers.clear()  # of an earlier run in this process
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    ours.addHandler(console)
    if main_process:
        for name in ("grpo_math", "transformers", "trl", "accelerate"):
            logging.getLogger(name).addHandler(file)


def quiet_progress_bars() -> None:
    """No bars for loading, saving and tokenising where nobody watches: in a log file they are noise."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
        disable_progress_bars()


def read_rows(path: Path) -> list[dict]:
    """The complete lines of one of our own files; a killed run may have left half a line."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return rows_of(file)


def rows_of(lines: Iterable[str]) -> list[dict]:
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def lines_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(rows: list[dict], path: Path) -> None:
    replace(lines_of(rows), path)


def replace(text: str, path: Path) -> None:
    """All of it or, where this is interrupted, what was there: another process may be reading."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def write_json(content: dict, path: Path) -> None:
    replace(json.dumps(content, indent=2, ensure_ascii=False) + "\n", path)


def append_rows(rows: list[dict], path: Path) -> None:
    """A training and an evaluation beside it may write to one file: one at a time."""
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # half a line of one that was killed
                file.write(b"\n")
        file.write(lines_of(rows).encode())


def forget_after(step: int, path: Path) -> list[dict]:
    """Of the rows of one of our own files, keep those up to a step, the ones a resumed run will not write again."""
    with path.open("a+", encoding="utf-8", newline="\n") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = [row for row in rows_of(file) if row["step"] <= step]
        file.truncate(0)
        file.write(lines_of(rows))
    return rows


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Raise UserError where another process is at work in this folder."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{what}: another process is at work in {folder}: wait for it, or end it") from None
        yield
    finally:
        os.close(held)


def wandb_identity(folder: Path) -> dict | None:
    """Which W&B run this is: id, project and entity, as `name_wandb_run` wrote them down; None without one."""
    file = folder / "wandb.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def name_wandb_run(folder: Path) -> None:
    """Have W&B go on in the same run when this one is resumed, and tell an evaluation beside it which one that is."""
    known = wandb_identity(folder) or {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)}
    os.environ |= {"WANDB_RUN_ID": known["id"], "WANDB_RESUME": "allow"}
    known |= {"project": os.environ.get("WANDB_PROJECT", "huggingface"), "entity": os.environ.get("WANDB_ENTITY")}
    write_json(known, folder / "wandb.json")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The revision of the checkout the command runs in, with `+` for uncommitted changes; None outside one."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
