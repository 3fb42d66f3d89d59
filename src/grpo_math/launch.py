"""Run a recipe on a layout of GPUs, with its vLLM server where it has one; both end together.

usage: grpo-math launch --layout single_gpu --config recipes/X.yaml [--key value ...] [--dry-run]

  --config, --key      the recipe (GRPO or SFT) and its keys, as for grpo-math train
  --layout NAME        a file of accelerate_configs/, or the path of your own: cpu, single_gpu (the default), dual_gpu
                       (GPU 0 trains, GPU 1 serves vLLM), multi_gpu, zero2, zero3, fsdp2, multi_node
  --num_processes N    training processes on this machine; by default one for every GPU that serves nothing
  --nodes N            training machines; with --main_process_ip HOST (and --main_process_port) for all of them, and
                       --node_rank I for each (default: SLURM's)
  --dry-run            print the plan and the commands, start nothing

Ctrl-C or SIGTERM finishes the step, saves a checkpoint and ends with status 0; a second one ends at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from grpo_math import run_folder
from grpo_math.errors import UserError, run_cli
from grpo_math.layouts import Plan, make_plan, parse
from grpo_math.processes import Stopped, send, start, supervised
from grpo_math.vllm_server import wait_until_healthy

TIMEOUT = 600  # seconds for a server to come up, with a large model; vllm_server_timeout changes it


def main(argv: list[str]) -> None:
    status = supervised(lambda: run_cli(launch, argv))
    if status:
        sys.exit(status)


def launch(argv: list[str]) -> None:
    options, arguments, dry_run = parse(argv)
    plan = make_plan(options, arguments)
    print(plan, flush=True)
    if not dry_run:
        with contextlib.redirect_stdout(None):  # the trainer says where it begins
            run_folder.find_checkpoint(plan.recipe)
        run(plan)


def run(plan: Plan) -> None:
    """Start the server, wait for it, start the trainer, and return when that has ended well. `supervised` ends both,
    whatever happens here."""
    log = plan.recipe.output_dir / "vllm_server.log"
    server = start_server(plan, log) if plan.server else None
    trainer = start([*plan.trainer.program, *plan.trainer.words], os.environ | plan.trainer.environment)
    try:
        status = wait(trainer, server)
    except Stopped:
        told = workers(trainer)
        if not told:
            raise
        print("stopping: the step is finished and saved first (once more: at once)", flush=True)
        for worker in told:
            send(worker, signal.SIGTERM)
        psutil.wait_procs(told)  # accelerate itself may have ended before them
        status = wait(trainer, server)
    if status is None:
        show_end(log)
        raise UserError(
            f"the vLLM server ended with status {server.returncode} during the training (its log, {log}, is above): "
            "continue from the last checkpoint with --resume_from_checkpoint auto"
        )
    if status:
        sys.exit(status if status > 0 else 128 - status)


def start_server(plan: Plan, log: Path) -> subprocess.Popen:
    """The server, once it answers. Raises UserError, with the end of its log, where it never does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    server = start([*plan.server.program, *plan.server.words], os.environ | plan.server.environment, log)

    def still_there() -> None:
        if server.poll() is not None:
            raise UserError(f"the vLLM server ended with status {server.returncode}: its log, {log}, is above")

    started = time.monotonic()
    try:
        wait_until_healthy(plan.url, plan.recipe.trainer.get("vllm_server_timeout", TIMEOUT), still_there)
    except UserError:
        show_end(log)
        raise
    print(f"vLLM server ready after {time.monotonic() - started:.0f} s (log: {log})", flush=True)
    return server


def wait(trainer: subprocess.Popen, server: subprocess.Popen | None) -> int | None:
    """The trainer's exit status; None where the server has ended before it."""
    while trainer.poll() is None:
        if server and server.poll() is not None:
            return None
        time.sleep(0.2)
    return trainer.returncode


def workers(trainer: subprocess.Popen) -> list[psutil.Process]:
    """The training processes: the children of `accelerate launch`, which itself would only kill them."""
    try:
        return psutil.Process(trainer.pid).children()
    except psutil.NoSuchProcess:
        return []


def show_end(log: Path, lines: int = 15) -> None:
    for line in log.read_text(errors="replace").splitlines()[-lines:]:
        print(f"| {line}", file=sys.stderr)


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("launch")
