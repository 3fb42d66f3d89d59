"""The output files of a run: OUTPUT_DIR with recipe.yaml, environment.json, training.log, metrics.jsonl, eval.jsonl,
alarms.jsonl, completions/, checkpoint-*, best/, final/, results.json and report.html."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from grpo_math.errors import UserError, one_line
from grpo_math.recipe.batch import is_main_process, world_size

PACKAGES = ("grpo-math", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "math-verify", "vllm")


def write_facts(folder: Path, recipe: str, dataset_fingerprint: str, checkpoint: Path | None) -> dict:
    """Write recipe.yaml (its text is `recipe`) and environment.json, and return the latter's facts. A run that resumes
    from a checkpoint must have the problems of the run that saved it."""
    earlier = checkpoint and checkpoint.parent / "environment.json"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    times = {"started": now}
    if earlier and earlier.exists():
        known = json.loads(earlier.read_text(encoding="utf-8"))
        before, times = known["dataset_fingerprint"], {"started": known.get("started"), "resumed": now}
        if before != dataset_fingerprint:
            raise UserError(
                f"resume_from_checkpoint: the run was started with other problems (fingerprint {before}, now "
                f"{dataset_fingerprint}): restore the dataset keys of {earlier.parent}/recipe.yaml"
            )
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    facts = {
        "command": command(),
        "git_revision": git_revision(),
        **times,
        "dataset_fingerprint": dataset_fingerprint,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **gpus(),
        "processes": world_size(),
        "packages": versions(),
    }
    write_json(facts, folder / "environment.json")
    return facts


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Make the folder, log to its training.log, and keep other trainings out until the end. The traceback of an error
    is in the log."""
    from grpo_math.runs.logs import log_to

    quiet_progress_bars()
    log_to(folder / "training.log")
    try:
        with only_one(folder, "output_dir") if is_main_process() else contextlib.nullcontext():
            yield
    except Exception as error:
        what = "a mistake" if isinstance(error, UserError) else "an error"
        logging.getLogger("grpo_math").debug("stopped by %s", what, exc_info=True)
        raise


def quiet_progress_bars() -> None:
    """No bars for loading, saving and tokenising without a terminal: in a log file they are noise."""
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


def rows_of(lines: Iterable[str | bytes]) -> list[dict]:
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def lines_of(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(rows: list[dict], path: Path) -> None:
    replace(lines_of(rows), path)


def replace(text: str, path: Path) -> None:
    """All of it or, where this is interrupted, what was there: another process may be reading."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def write_json(content: dict, path: Path) -> None:
    replace(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[BinaryIO]:
    """One of our own files, to append to. A training and its `evaluate --watch` may write to it: one at a time."""
    while True:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not replaced meanwhile
                yield file
                return


def append_rows(rows: list[dict], path: Path) -> None:
    with alone(path) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # half a line of one that was killed
                file.write(b"\n")
        file.write(lines_of(rows).encode())


def forget_after(step: int, path: Path) -> list[dict]:
    """Of the rows of one of our own files, keep those up to a step, the ones a resumed run will not write again."""
    return forget(path, lambda row: row["step"] > step)


def forget(path: Path, gone: Callable[[dict], bool]) -> list[dict]:
    """Remove rows from one of our own files; returns those that are left."""
    with alone(path) as file:
        file.seek(0)
        rows = [row for row in rows_of(file) if not gone(row)]
        write_rows(rows, path)
    return rows


def write_results(folder: Path, results: dict, started: float) -> None:
    """Add the seconds since `started` (of time.perf_counter) as the total, and write results.json: it is finished."""
    results["seconds"]["total"] = round(time.perf_counter() - started, 2)
    if is_main_process():
        write_json(results, folder / "results.json")
        logging.getLogger("grpo_math.train").info("run folder: %s (the model is in final/)", folder)


def write_table(rows: list[dict], path: Path) -> None:
    """As compressed Parquet."""
    import pyarrow
    from pyarrow import parquet

    new = path.with_name(f"{path.name}.new")
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    parquet.write_table(table, new, compression="zstd")
    to_disk(new)
    new.replace(path)


def to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_table(path: Path) -> list[dict]:
    """The rows of Parquet, or of JSON lines, as `grpo-math evaluate` has them; raises UserError for a damaged file."""
    from pyarrow import ArrowException, parquet

    with one_line(f"{path}: no completions", "name another file", (OSError, UnicodeError, ArrowException)):
        return parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else read_rows(path)


def forget_completions(folder: Path, step: int) -> None:
    """Delete the completions of later steps, and of later evaluations."""
    for table in (folder / "completions").glob("*.parquet"):
        made = re.fullmatch(r"(?:completions_|step-|eval-)(\d+)", table.stem)
        if made and int(made[1]) > step:
            table.unlink()


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Raise UserError where another process is using this folder, for more than `is_running`'s moment."""
    held = os.open(folder, os.O_RDONLY)
    try:
        for patience in (0.1, 0.1, 0):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(patience)
        else:
            raise UserError(f"{what}: another process is using {folder}: wait for it, or stop it")
        yield
    finally:
        os.close(held)


def is_running(folder: Path) -> bool:
    """Whether a training is running in this folder."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


def wandb_identity(folder: Path) -> dict | None:
    """Which W&B run this is: id, project and entity, as `name_wandb_run` wrote them down; None without one."""
    file = folder / "wandb.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def name_wandb_run(folder: Path) -> None:
    """Have W&B continue the same run when this one is resumed, and tell `evaluate --watch` which one that is."""
    import wandb

    known = wandb_identity(folder) or {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)}
    wandb.setup(wandb.Settings(run_id=known["id"], resume="allow"))  # check_wandb has had it read its environment
    known |= {"project": os.environ.get("WANDB_PROJECT", "huggingface"), "entity": os.environ.get("WANDB_ENTITY")}
    write_json(known, folder / "wandb.json")


def versions() -> dict[str, str]:
    """The versions of PACKAGES, of those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """The revision of the checkout the command runs in, with `+` for uncommitted changes; None outside one."""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> list[str]:
    """What a person typed: the launcher's command line where there is one, else our own."""
    program = Path(sys.argv[0])
    module = "grpo_math" if program.stem == "__main__" else f"grpo_math.{program.stem}"
    script = ["-m", module] if program.parent.name == "grpo_math" else [program.name]
    own = ["python", *script] if program.suffix == ".py" else [program.name]
    with contextlib.suppress(psutil.Error):
        for parent in reversed(psutil.Process().parents()):
            words = [Path(word).name if place < 2 else word for place, word in enumerate(parent.cmdline())]
            if words[1:3] in (["accelerate", "launch"], ["grpo-math", "launch"]):
                return words[1:]
            if words[1:4] == ["-m", "grpo_math", "launch"]:
                return ["python", *words[1:]]
    return [*own, *sys.argv[1:]]


def next_step(*words: str | Path) -> None:
    """Print the command that is useful after this one; the arguments are its words. The verbs call it, for a person."""
    if is_main_process():
        print(f"next: grpo-math {shlex.join(map(str, words))}", flush=True)


def resume_command(words: list[str], folder: Path, verb: str) -> str:
    """What resumes the run in this folder that these words have started."""
    if "--config" not in words:  # quickstart, or the Python API
        words = ["grpo-math", verb, "--config", str(folder / "recipe.yaml")]
    if "--resume_from_checkpoint" in words:
        place = words.index("--resume_from_checkpoint")
        words = words[:place] + words[place + 2 :]
    return shlex.join([*words, "--resume_from_checkpoint", "auto"])


def gpus() -> dict:
    """The names of the GPUs that this process sees, and how many the run occupies, a vLLM server's too (`launch`)."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"gpus": names, "gpu_count": int(os.environ.get("GRPO_MATH_GPUS", world_size() if names else 0))}
