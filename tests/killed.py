"""Only for tests: train one run in peace and one that is killed with -9 again and again, and print how often as JSON.

usage: python tests/killed.py RECIPE FOLDER KILLS SEED

The trainings are forked from this process, which has imported everything: a resume costs a second and not ten. A
killed one has between a moment and three seconds, so that the moments are spread over loading, steps, checkpoints and
evaluations.
"""

import json
import os
import random
import signal
import sys
import time

import torch
import trl.trainer.grpo_trainer  # noqa: F401

import grpo_math.callbacks
import grpo_math.trainer  # noqa: F401
from grpo_math.recipe import load_recipe
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
    started = time.monotonic()
    assert ended(start(recipe, f"{folder}/whole"), 600)
    whole, made, moments = time.monotonic() - started, 0, random.Random(int(seed))
    while True:
        child = start(recipe, f"{folder}/killed")
        if ended(child, moments.uniform(0.2, 0.25 * whole) if made < int(kills) else 600):
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        made += 1
    print(json.dumps({"kills": made, "seconds": round(whole, 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
