"""What a run leaves behind: OUTPUT_DIR with recipe.yaml, environment.json, training.log, metrics.jsonl, eval.jsonl,
completions/, checkpoint-*, final/ and results.json."""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.recipe import Recipe

PACKAGES = ("grpo-math", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "math-verify", "vllm")


def find_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means: `auto` (or true) is the last complete one, if any.

    Raises UserError for a checkpoint that is not there, and for a folder that holds a run nobody asked to continue.
    """
    wanted = recipe.trainer.get("resume_from_checkpoint")
    complete = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in recipe.output_dir.glob("checkpoint-*")
        if (folder / "trainer_state.json").exists() and folder.name.rpartition("-")[2].isdigit()
    }
    if wanted in ("auto", True):
        return str(complete[max(complete)]) if complete else None
    if wanted:
        if not (Path(wanted) / "trainer_state.json").exists():
            there = ", ".join(str(complete[step]) for step in sorted(complete)) or "none"
            raise UserError(f"resume_from_checkpoint: {wanted} is no complete checkpoint (there: {there}): or say auto")
        return wanted
    if complete or (recipe.output_dir / "metrics.jsonl").exists():
        raise UserError(
            f"{recipe.output_dir} already holds a run: continue it with --resume_from_checkpoint auto, or give "
            "another --output_dir"
        )
    return None


def write_facts(recipe: Recipe, dataset_fingerprint: str) -> None:
    """Write recipe.yaml and environment.json, before anything is trained."""
    folder = recipe.output_dir
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
    (folder / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")


def open_folder(folder: Path) -> None:
    """Make the folder and send all logs to its training.log; the console gets plain messages.

    Only the first process speaks; the others keep to warnings on the console.
    """
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
