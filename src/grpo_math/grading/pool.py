"""Worker processes for what may hang: a job gets a deadline, and a worker that misses it is killed and replaced.

A worker is a fresh interpreter (`python -m grpo_math.grading.pool`) that reads one JSON line a job and answers with
one line: it inherits neither CUDA nor threads, imports neither torch nor trl, may not grow over its memory cap, and
dies with its parent. The clock of a job starts when a ready worker gets it.
"""

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

from grpo_math.errors import UserError

CLOSE_SECONDS = 10.0  # to wait at exit for a batch of another thread
START_SECONDS = 120.0  # for a worker to import math_verify, on the busiest of machines


@dataclass(frozen=True)
class PoolSettings:
    """The `grading:` part of a recipe: seconds an answer may take, GiB of address space a worker may use, and how many
    workers there are at most (by default the cores left to this process)."""

    timeout: float = 2.0
    memory_gib: float = 2.0
    workers: int | None = None


class Worker:
    """One process: not `ready` until its first line, then idle, or at work on `job` until `deadline`."""

    def __init__(self, settings: PoolSettings):
        timeout = settings.timeout
        command = [sys.executable, "-m", "grpo_math.grading.pool", str(timeout), str(settings.memory_gib)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self.ready = False
        self.job: int | None = None
        self.timeout = timeout
        self.deadline = time.monotonic() + START_SECONDS

    def send(self, index: int, pair: tuple[str, str]) -> None:
        self.job, self.deadline = index, time.monotonic() + self.timeout
        with contextlib.suppress(BrokenPipeError):  # it died while idle: its closed output will tell
            self.process.stdin.write(json.dumps(pair).encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Pool:
    """Worker processes, started as they are needed. Safe to call from any thread, one batch at a time."""

    def __init__(self, settings: PoolSettings):
        self.settings = settings
        self.size = settings.workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.workers: list[Worker] = []
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def run(self, pairs: list[tuple[str, str]]) -> list[tuple[bool | None, str]]:
        """(correct, how) for each (gold, answer); `how` is math_verify, unparsable_gold, timeout or crashed."""
        with self.lock:
            try:
                return self.dispatch(pairs)
            except BaseException:  # Ctrl-C in the middle: what the workers are doing now is nobody's
                self.kill_all()
                raise

    def dispatch(self, pairs: list[tuple[str, str]]) -> list[tuple[bool | None, str]]:
        waiting, verdicts = deque(range(len(pairs))), {}
        while len(verdicts) < len(pairs):
            self.staff(len(waiting))
            for worker in self.workers:
                if worker.ready and worker.job is None and waiting:
                    index = waiting.popleft()
                    worker.send(index, pairs[index])
            for worker, line in self.wait():
                if not worker.ready:
                    worker.ready = self.started(worker, line)
                    continue
                if worker.job is not None:
                    verdicts[worker.job] = VERDICTS[line]
                    worker.job = None
                if line not in LINES.values():
                    self.remove(worker)
        return [verdicts[index] for index in range(len(pairs))]

    def staff(self, waiting: int) -> None:
        """Start as many workers as there is work for; one that died while idle is replaced."""
        for worker in [worker for worker in self.workers if worker.ready and worker.job is None]:
            if worker.process.poll() is not None:
                self.remove(worker)
        busy = sum(worker.job is not None for worker in self.workers)
        while len(self.workers) < min(self.size, busy + waiting):
            self.workers.append(Worker(self.settings))

    def wait(self) -> list[tuple[Worker, bytes]]:
        """Workers with something to say, and their line; `b""` from a dead one, `TOO_LATE` past the deadline."""
        watched = [worker for worker in self.workers if worker.job is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in watched:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            left = min(worker.deadline for worker in watched) - time.monotonic()
            spoke = [(key.data, key.data.process.stdout.readline()) for key, _ in selector.select(max(0.0, left))]
        heard = {id(worker) for worker, _ in spoke}
        now = time.monotonic()
        return spoke + [(worker, TOO_LATE) for worker in watched if worker.deadline <= now and id(worker) not in heard]

    def started(self, worker: Worker, line: bytes) -> bool:
        if line != READY:
            self.remove(worker)
            raise UserError("grading: no worker starts: `python -m grpo_math.grading.pool 2 2` says why")
        return True

    def remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()

    def kill_all(self) -> None:
        while self.workers:
            self.workers.pop().kill()

    def close(self) -> None:
        """End the workers, once a batch in another thread is done; a forked child that inherited them must not."""
        if os.getpid() == self.owner:
            waited = self.lock.acquire(timeout=CLOSE_SECONDS)
            self.kill_all()
            if waited:
                self.lock.release()


READY, TOO_LATE = b"ready\n", b"late"
LINES = {True: b"true\n", False: b"false\n", None: b"null\n"}
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


def work(timeout: float, memory_gib: float) -> None:
    """The life of a worker: one verdict a line, until its input ends."""
    import logging
    import resource
    import select
    import signal

    logging.disable(logging.CRITICAL)
    cap = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    from grpo_math.grading.equal import verify

    verify("1", "1")  # loads all it needs: the clock of the first job must not pay for it
    say = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not be taken for a verdict
    os.write(say, READY)
    parent = os.getppid()
    while True:
        while not select.select([sys.stdin], [], [], 5)[0]:
            if os.getppid() != parent:  # and a forked child of it keeps our input open
                return
        line = sys.stdin.buffer.readline()
        if not line:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # should the parent have died, die too
        try:
            verdict = verify(*json.loads(line))
        except MemoryError:
            return
        except Exception:  # what math_verify cannot compare is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(say, LINES[verdict])


if __name__ == "__main__":
    work(float(sys.argv[1]), float(sys.argv[2]))
