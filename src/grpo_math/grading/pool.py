"""What may hang is graded in worker processes (`worker`), which end themselves at their deadline and are replaced."""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grpo_math.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
MAX_MESSAGE = 2**18  # bytes; a gold and an answer have some thousand characters each
CLOSE_SECONDS = 10.0  # to wait at exit for a batch of another thread
SILENCE_SECONDS = 120.0  # of processes that are given up: more than importing math_verify takes on a busy machine
Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class PoolSettings:
    """The `grading:` part of a recipe: CPU seconds per answer, GiB of address space per worker, and how many
    answers are graded at a time (by default as many as there are cores for this process)."""

    timeout: float = 2.0
    memory_gib: float = 2.0
    workers: int | None = None


class Pool:
    """Workers, forked by a process that has loaded math_verify. Any thread may call `run`; batches are graded one after
    the other."""

    door: socket.socket  # to the process

    def __init__(self, settings: PoolSettings):
        self.settings = settings
        self.size = 0
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()

    def run(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """(correct, how) per normalised (gold, answer); `how` is math_verify, unparsable_gold, timeout or crashed."""
        verdicts: dict[int, Verdict] = {}
        with self.lock:
            for _ in range(2):  # if the processes are killed, new ones get what is left
                try:
                    with suppress(OSError):
                        self.dispatch(pairs, verdicts)
                finally:
                    if len(verdicts) < len(pairs):
                        self.end()
        return [verdicts.get(job, (False, "crashed")) for job in range(len(pairs))]

    def dispatch(self, pairs: list[tuple[str, str]], verdicts: dict[int, Verdict]) -> None:
        """Add the verdicts that are missing; some still are if the processes end."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        waiting = deque(json.dumps([job, *pair]).encode() for job, pair in enumerate(pairs) if job not in verdicts)
        for _ in range(min(self.size, len(waiting))):
            self.door.send(waiting.popleft())
        working: dict[int, int] = {}
        while len(verdicts) < len(pairs) and (message := self.door.recv(MAX_MESSAGE)):
            worker, *news = json.loads(message)
            if len(news) == 1:
                working[worker] = news[0]
            elif worker in working:  # else an idle one died
                verdicts[working.pop(worker)] = tuple(news)
                if waiting:
                    self.door.send(waiting.popleft())

    def start(self) -> None:
        self.end()
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.size = self.settings.workers or max(1, share)
        self.door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = (theirs.fileno(), self.settings.timeout, self.settings.memory_gib, self.size)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.door.settimeout(self.settings.timeout + SILENCE_SECONDS)
        with suppress(OSError):
            if self.door.recv(MAX_MESSAGE):
                return
        self.end()
        raise UserError("grading: the workers do not start: `python -c 'import math_verify'` may show why")

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()  # its workers end with it
            self.process.wait()
            self.door.close()
            self.process = None

    def close(self) -> None:
        """End the processes once a batch in another thread is done, or after a while."""
        waited = self.lock.acquire(timeout=CLOSE_SECONDS)
        self.end()
        if waited:
            self.lock.release()

    def forget(self) -> None:
        """In a forked child: the processes belong to its parent."""
        if self.process is not None:
            self.door.close()
        self.process, self.lock = None, threading.Lock()


pool = Pool(PoolSettings())
atexit.register(pool.close)
os.register_at_fork(after_in_child=pool.forget)


def configure(settings: PoolSettings) -> None:
    """The settings of this process's pool, from the next batch on."""
    if settings != pool.settings:
        pool.close()
        pool.settings = settings
