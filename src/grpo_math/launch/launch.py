"""Run a recipe on a layout of GPUs, with its vLLM server where it has one; if one of them ends, both do."""

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from grpo_math.errors import UserError, run_cli
from grpo_math.generation.processes import GRACE, Stopped, how_ended, send, supervised
from grpo_math.generation.vllm_server import show_end, start_server, start_up
from grpo_math.launch.plan import Command, Plan, make_plan, outline, plan_here
from grpo_math.recipe.batch import is_main_process
from grpo_math.runs import checkpoints
from grpo_math.runs.folder import command, quiet_progress_bars, resume_command

RESTARTS = 5  # of the evaluation process


def main(options: argparse.Namespace) -> None:
    """Launch; with --dry_run, which `train` and `sft` have too, print the plan."""
    if options.verb != "launch":
        plan = plan_here(options)
        if is_main_process():
            print(f"{plan}\n{outline(plan)}")
        return
    if status := supervised(lambda: run_cli(lambda _: launch(options))):
        sys.exit(status)


def launch(options: argparse.Namespace) -> None:
    quiet_progress_bars()
    plan = make_plan(options)
    print(plan, flush=True)
    if options.dry_run:
        print(outline(plan))
    else:
        with contextlib.redirect_stdout(None):  # the trainer prints where it begins
            recipe = plan.recipe
            checkpoints.find_checkpoint(recipe.output_dir, recipe.trainer.get("resume_from_checkpoint"), recipe.raw)
        run_plan(plan)


def run_plan(plan: Plan) -> None:
    """Start the server, wait for it, start the trainer, and return when it has ended with status 0. `supervised` stops
    both, whatever happens here."""
    log, server = plan.recipe.output_dir / "vllm_server.log", None
    if plan.server:
        server = start_server(plan.server.words, plan.server.environment, plan.url, log, start_up(plan.recipe.keys))
    watcher = Watcher(plan.watcher, plan.recipe.output_dir) if plan.watcher else None
    trainer, stopped = plan.trainer.start(), False
    try:
        status = wait(trainer, server, watcher)
    except Stopped:
        told = workers(trainer)
        if not told:
            raise
        print("stopping: the step is finished and saved first (a second signal stops at once)", flush=True)
        for worker in told:
            send(worker, signal.SIGTERM)
        psutil.wait_procs(told)  # accelerate itself may end before them
        status, stopped = wait(trainer, server), True
    if server and status is None:
        show_end(log)
        raise UserError(
            f"the vLLM server {how_ended(server.returncode)}, during the training (the end of its log, {log}, is "
            "above): continue from the last checkpoint with --resume_from_checkpoint auto"
        )
    if status and was_killed(status) and not stopped:
        again = resume_command(command(), plan.recipe.output_dir, "launch")
        print(f"error: the training {how_ended(status)}. Continue with: {again}", file=sys.stderr)
    if status and stopped:
        print("stopped before a step was finished: nothing is saved", file=sys.stderr)
    if status:
        sys.exit(status if status > 0 else 128 - status)
    if watcher and watcher.results.exists():
        watcher.finish()


class Watcher:
    """The process that evaluates the checkpoints of a training. A killed one is restarted, a few times; one that ends
    with an error has printed it, and the training continues."""

    def __init__(self, command: Command, folder: Path):
        self.command, self.results = command, folder / "results.json"
        self.process: subprocess.Popen | None = None
        self.again, self.left = 0.0, RESTARTS
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Start it once the results of an earlier run are gone, and again where it was killed."""
        now = time.monotonic()
        if self.process is None:
            if not self.results.exists() and now > self.again:
                self.process = self.command.start()
        elif was_killed(self.process.poll()) and self.left:
            self.left -= 1
            self.process, self.again = None, now + GRACE  # its children end in the meantime
            print(f"the evaluation process was killed: restarting it in {GRACE} s", flush=True)

    def finish(self) -> None:
        """Wait until the last checkpoint is evaluated."""
        self.process = self.process or self.command.start()
        if self.process.wait():
            print("the last checkpoint was not evaluated: run grpo-math evaluate", file=sys.stderr)


def was_killed(status: int | None) -> bool:
    """By a signal to itself, or to the supervisor it waits for."""
    return status is not None and (status < 0 or status > 128)


def wait(trainer: subprocess.Popen, server: subprocess.Popen | None, watcher: Watcher | None = None) -> int | None:
    """The trainer's exit status; None where the server ended before it."""
    while trainer.poll() is None:
        if server and server.poll() is not None:
            return None
        if watcher:
            watcher.keep()
        time.sleep(0.2)
    return trainer.returncode


def workers(trainer: subprocess.Popen) -> list[psutil.Process]:
    """The training processes: the children of `accelerate launch`, which itself would only kill them."""
    try:
        return psutil.Process(trainer.pid).children()
    except psutil.NoSuchProcess:
        return []
