"""Only for tests: train one run in peace and one that is killed with -9 again and again, and print as JSON which
checkpoint each kill left.

usage: python tests/killed.py RECIPE FOLDER KILLS SEED

The trainings are forked from this process, which has imported everything: a resume costs a second and not ten. A
killed one has up to one and a half times as long as the first one needed for its first checkpoint, so that the moments
are spread over loading, steps, checkpoints and evaluations; where a run gets to its end, another is begun.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import trl.trainer.grpo_trainer  # noqa: F401

import grpo_math.trainer.callbacks
import grpo_math.trainer.trainer  # noqa: F401
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.train import train


def start(recipe: str, folder: str) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        train(load_recipe(["--config", recipe, "--output_dir", folder, "--resume_from_checkpoint", "auto"]))
        sys.stdout.flush()
        os._exit(0)
    return child


def ended(child: int, seconds: float) -> bool:
    """Whether it has ended by itself in this time, as it should."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the training ended with {status}"
            return True
        time.sleep(0.005)
    return False


def main(recipe: str, folder: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # or each training looks through the objects of torch, and copies their pages
    started, child, loading = time.monotonic(), start(recipe, f"{folder}/whole"), 0.0
    while not ended(child, 0.01):
        if not loading and complete_checkpoints(Path(folder) / "whole"):
            loading = time.monotonic() - started
    reached, runs, moments = [], 1, random.Random(int(seed))
    while True:
        child = start(recipe, f"{folder}/killed-{runs}")
        if ended(child, moments.uniform(0.3, 1.5) * loading if len(reached) < int(kills) else 600):
            if len(reached) == int(kills):
                break
            runs += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached.append(max(complete_checkpoints(Path(folder) / f"killed-{runs}"), default=0))
    print(json.dumps(reached))


if __name__ == "__main__":
    main(*sys.argv[1:])
