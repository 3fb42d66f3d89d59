"""Worker processes for what may hang: a job gets a deadline, and a worker that misses it is killed and replaced.

The processes themselves are in `worker`: they inherit neither CUDA nor threads, may not grow over their memory cap and
die with their parent.
"""

import atexit
import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

from grpo_math.errors import UserError
from grpo_math.grading.worker import LINES, NEW, NUMBER

CLOSE_SECONDS = 10.0  # to wait at exit for a batch of another thread, or for the nursery to end
START_SECONDS = 120.0  # for the nursery to import math_verify, on the busiest of machines


@dataclass(frozen=True)
class PoolSettings:
    """The `grading:` part of a recipe: seconds an answer may take, GiB of address space a worker may use, and how many
    workers there are at most (by default the cores left to this process)."""

    timeout: float = 2.0
    memory_gib: float = 2.0
    workers: int | None = None


class Nursery:
    """The process that forks workers. It ends, and they with it, when this side of its socket closes."""

    def __init__(self, settings: PoolSettings):
        self.socket, theirs = socket.socketpair()
        words = [str(theirs.fileno()), str(settings.timeout), str(settings.memory_gib)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grpo_math.grading.worker", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.socket.settimeout(START_SECONDS)
        self.answer()

    def ask(self, number: int, descriptors: tuple[int, ...] = ()) -> int:
        with contextlib.suppress(OSError):  # the answer will tell
            socket.send_fds(self.socket, [NUMBER.pack(number)], descriptors)
        return self.answer()

    def answer(self) -> int:
        try:
            return NUMBER.unpack(self.socket.recv(NUMBER.size))[0]
        except (OSError, struct.error):
            self.close()
            raise UserError("grading: no worker starts: `python -c 'import math_verify'` may say why") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # for a forked child of ours that holds it too
        self.socket.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Worker:
    """One process: idle, or at work on `job` until `deadline`."""

    def __init__(self, nursery: Nursery, timeout: float):
        self.nursery, self.timeout = nursery, timeout
        self.socket, theirs = socket.socketpair()
        self.pid = nursery.ask(NEW, (theirs.fileno(),))
        theirs.close()
        self.job: int | None = None
        self.deadline = 0.0

    def send(self, index: int, pair: tuple[str, str]) -> None:
        self.job, self.deadline = index, time.monotonic() + self.timeout
        with contextlib.suppress(BrokenPipeError):  # it has just died: its closed output will tell
            self.socket.sendall(json.dumps(pair).encode() + b"\n")

    def heard(self) -> bytes:
        """Its line; `b""` from a dead one."""
        try:
            return self.socket.recv(16)
        except ConnectionResetError:
            return b""

    def kill(self) -> None:
        self.socket.close()
        with contextlib.suppress(UserError):  # the nursery is dead: its workers end by themselves, in a while
            self.nursery.ask(self.pid)


class Pool:
    """Worker processes, started as they are needed. Safe to call from any thread, one batch at a time."""

    def __init__(self, settings: PoolSettings):
        self.settings = settings
        self.size = settings.workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.nursery: Nursery | None = None
        self.workers: list[Worker] = []
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def run(self, pairs: list[tuple[str, str]]) -> list[tuple[bool | None, str]]:
        """(correct, how) for each (gold, answer); `how` is math_verify, unparsable_gold, timeout or crashed."""
        with self.lock:
            try:
                return self.dispatch(pairs)
            except BaseException:  # Ctrl-C in the middle: what the workers are doing now is nobody's
                self.end_all()
                raise

    def dispatch(self, pairs: list[tuple[str, str]]) -> list[tuple[bool | None, str]]:
        waiting, verdicts = deque(range(len(pairs))), {}
        while len(verdicts) < len(pairs):
            self.staff(len(waiting))
            for worker in self.workers:
                if worker.job is None and waiting:
                    index = waiting.popleft()
                    worker.send(index, pairs[index])
            for worker, line in self.wait():
                verdicts[worker.job] = VERDICTS[line]
                worker.job = None
                if line not in LINES.values():
                    self.remove(worker)
        return [verdicts[index] for index in range(len(pairs))]

    def staff(self, waiting: int) -> None:
        """Start as many workers as there is work for; one that died while idle is replaced."""
        if self.nursery is None or self.nursery.process.poll() is not None:
            self.workers = [worker for worker in self.workers if worker.job is not None]
            self.nursery = Nursery(self.settings)
        idle = [worker for worker in self.workers if worker.job is None]
        for worker in readable(idle, 0):  # one that lives has nothing to say
            self.remove(worker)
        busy = sum(worker.job is not None for worker in self.workers)
        while len(self.workers) < min(self.size, busy + waiting):
            self.workers.append(Worker(self.nursery, self.settings.timeout))

    def wait(self) -> list[tuple[Worker, bytes]]:
        """Workers with something to say, and their line; `b""` from a dead one, `TOO_LATE` past the deadline."""
        working = [worker for worker in self.workers if worker.job is not None]
        left = min(worker.deadline for worker in working) - time.monotonic()
        spoke = {worker: worker.heard() for worker in readable(working, max(0.0, left))}
        now = time.monotonic()
        late = [worker for worker in working if worker.deadline <= now and worker not in spoke]
        return [*spoke.items(), *((worker, TOO_LATE) for worker in late)]

    def remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()

    def end_all(self) -> None:
        self.workers.clear()
        if self.nursery:
            self.nursery.close()
            self.nursery = None

    def close(self) -> None:
        """End the workers, once a batch in another thread is done; a forked child that inherited them must not."""
        if os.getpid() == self.owner:
            waited = self.lock.acquire(timeout=CLOSE_SECONDS)
            self.end_all()
            if waited:
                self.lock.release()


def readable(workers: list[Worker], seconds: float) -> list[Worker]:
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.socket, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select(seconds)]


TOO_LATE = b"late"
VERDICTS = {
    LINES[True]: (True, "math_verify"),
    LINES[False]: (False, "math_verify"),
    LINES[None]: (None, "unparsable_gold"),
    TOO_LATE: (False, "timeout"),
    b"": (False, "crashed"),
}
settings = PoolSettings()
shared: Pool | None = None
making = threading.Lock()


def configure(wanted: PoolSettings) -> None:
    """How the workers of this process shall be, from the next batch on."""
    global settings, shared
    if shared and wanted != settings:
        shared.close()
        shared = None
    settings = wanted


def pool() -> Pool:
    """This process's pool, made on first use and closed at exit."""
    global shared
    with making:
        if shared is None or shared.owner != os.getpid():
            shared = Pool(settings)
            atexit.register(shared.close)
        return shared


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
