"""Processes that are ended for certain: no child, grandchild or daemon outlives the one who started it.

On Linux a *subreaper* becomes the parent of its descendants' orphans (man 2 prctl), so that whatever sessions and
process groups they made for themselves, `psutil` finds them all. Two processes watch each other: the front, which the
person sees, and the supervisor, its child, which does the work; either may be killed, the other one cleans up.
"""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

GRACE = 15  # seconds between being asked to end and being killed
TOGETHER = 2  # seconds in which signals are one
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of prctl
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the last two are SLURM's
USUALLY = {
    signal.SIGKILL: "usually by the kernel, out of memory (see `dmesg`): lower per_device_train_batch_size",
    signal.SIGBUS: "usually shared memory is full: give the container more, as docker run --shm-size 16g",
    signal.SIGSEGV: "a crash in compiled code: its last lines are above",
    signal.SIGABRT: "usually by NCCL or a C++ library: its message is above",
}


class Stopped(BaseException):
    """Raised on a signal of the user or the scheduler to stop."""


class Burst:
    """Signals that come together are one: `timeout` and SLURM tell every process, which then tell each other."""

    def __init__(self):
        self.last = -math.inf

    def begins(self) -> bool:
        """Whether the signal that has just come is the first for a while."""
        earlier, self.last = self.last, time.monotonic()
        return self.last - earlier > TOGETHER


def heeded() -> list[signal.Signals]:
    """The signals that stop a run, without those that are ignored, as SIGHUP under nohup: those stay so. SIGINT does
    not: a shell's script ignores it for all that it starts in the background, and who sends it there means it."""
    return [number for number in STOPS if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


def how_ended(status: int) -> str:
    """An exit status in words: where a signal killed the process, which one, and what that usually means. Negative, or
    over 128 as shells count."""
    number = -status if status < 0 else status - 128
    if number not in signal.valid_signals():
        return f"ended with status {status}"
    killer = signal.Signals(number)
    return f"was killed by {killer.name}" + (f", {USUALLY[killer]}" if killer in USUALLY else "")


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a supervisor and return its exit status; nothing it started is left afterwards.

    The signals in STOPS reach it as `Stopped`, as does the death of this process, and a second one again.
    """
    prctl(SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until both processes have their handlers
    front, supervisor = os.getpid(), os.fork()
    if supervisor == 0:
        os._exit(supervise(work, front))
    for number in heeded():
        signal.signal(number, lambda *_: os.kill(supervisor, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    status = os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])
    ignore_signals()
    end_children()
    return status if status >= 0 else 128 - status


def supervise(work: Callable[[], int], front: int) -> int:
    status, burst = 1, Burst()

    def stop(*_: object) -> None:
        if burst.begins():
            raise Stopped

    try:
        os.setsid()  # a Ctrl-C in the terminal is for the front
        ignore_signals()
        signal.signal(signal.SIGTERM, stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # sent to every process, they would kill the children
            signal.signal(number, signal.SIG_IGN)
        prctl(SET_CHILD_SUBREAPER, 1)
        prctl(SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if os.getppid() == front:
            status = work()
    except Stopped:
        status = 128 + signal.SIGTERM
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    ignore_signals()
    end_children()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def ignore_signals() -> None:
    """Nothing to do for them; not SIG_IGN, which children would inherit."""
    for number in heeded():
        signal.signal(number, lambda *_: None)


def end_children(child: subprocess.Popen | None = None) -> None:
    """End all descendants of this process, or this child and its descendants: with SIGTERM, and after a while with
    SIGKILL those that are left and those that started meanwhile."""
    if child and child.poll() is not None:
        return
    parent = psutil.Process(child.pid if child else None)
    found = {*descendants(parent), *([parent] if child else [])}
    number, patience = signal.SIGTERM, GRACE
    while found:
        for process in found:
            send(process, number)
        _, left = psutil.wait_procs(found, timeout=patience)
        found = {*left, *descendants(parent)}
        number, patience = signal.SIGKILL, 1


def descendants(parent: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return parent.children(recursive=True)
    return []


def send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def start(command: list[str], environment: dict[str, str], log: Path | None = None) -> subprocess.Popen:
    """Start a child in a session of its own, so that a Ctrl-C in the terminal is for the launcher alone."""
    if log is None:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
