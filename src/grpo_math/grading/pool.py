"""What may hang is graded in worker processes (`worker`), which end themselves at their deadline and are replaced."""

import atexit
import contextlib
import json
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

from grpo_math.errors import UserError
from grpo_math.grading.worker import CRASHED, LINES

CLOSE_SECONDS = 10.0  # to wait at exit for a batch of another thread, or for the worker to end
START_SECONDS = 120.0  # for the worker to import math_verify, on the busiest of machines
VERDICTS = {line: (correct, "math_verify") for correct, line in LINES.items()} | {
    LINES[None]: (None, "unparsable_gold"),
    CRASHED: (False, "crashed"),
}
Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class PoolSettings:
    """The `grading:` part of a recipe: seconds an answer may take, GiB of address space a worker may use, and how many
    answers are graded at a time (by default as many as there are cores for this process)."""

    timeout: float = 2.0
    memory_gib: float = 2.0
    workers: int | None = None


class Pool:
    """Workers, forked as they are needed by a process that has loaded math_verify. Any thread may call it; batches are
    graded one after the other."""

    def __init__(self, settings: PoolSettings):
        self.settings = settings
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.size = settings.workers or max(1, share)
        self.process: subprocess.Popen | None = None
        self.door: socket.socket | None = None
        self.idle: list[socket.socket] = []  # of workers without a job
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def run(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """(correct, how) for each (gold, answer); `how` is math_verify, unparsable_gold, timeout or crashed."""
        with self.lock:
            try:
                return self.dispatch(pairs)
            except BaseException:  # Ctrl-C: discard the workers, nobody reads their verdicts
                self.end()
                raise

    def dispatch(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        waiting, verdicts, again = deque(range(len(pairs))), {}, set()
        with selectors.DefaultSelector() as working:
            while len(verdicts) < len(pairs):
                while waiting and len(working.get_map()) < self.size:
                    job, start = waiting.popleft(), time.monotonic()
                    working.register(self.hand_over(pairs[job]), selectors.EVENT_READ, (job, start))
                for key, _ in working.select():
                    job, start = key.data
                    working.unregister(key.fileobj)
                    verdict = self.verdict(key.fileobj, time.monotonic() - start)
                    if verdict[1] == "crashed" and self.process.poll() is not None and job not in again:
                        waiting.append(job)  # the parent died before it forked this worker
                        again.add(job)
                    else:
                        verdicts[job] = verdict
        return [verdicts[job] for job in range(len(pairs))]

    def hand_over(self, pair: tuple[str, str]) -> socket.socket:
        """Give a job to an idle worker or a new one; returns the socket that the verdict comes through."""
        message = json.dumps(pair).encode()
        while self.idle:
            worker = self.idle.pop()
            if not select.select([worker], [], [], 0)[0]:  # a healthy idle worker has no pending data
                with contextlib.suppress(OSError):
                    worker.send(message)
                return worker
            worker.close()
        if not self.process or self.process.poll() is not None:
            self.start()
        worker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker.send(message)
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self.door, [b"new"], [theirs.fileno()])
        return worker

    def verdict(self, worker: socket.socket, seconds: float) -> Verdict:
        """A worker's verdict. A closed socket means that its alarm or another signal has ended it."""
        with contextlib.suppress(ConnectionResetError):
            if line := worker.recv(16):
                self.idle.append(worker)
                return VERDICTS[line]
        worker.close()
        return False, "timeout" if seconds >= self.settings.timeout else "crashed"

    def start(self) -> None:
        self.end()
        self.door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [str(theirs.fileno()), str(self.settings.timeout), str(self.settings.memory_gib)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grpo_math.grading.worker", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.door.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            if self.door.recv(16):
                return
        self.end()
        raise UserError("grading: no worker starts: `python -c 'import math_verify'` may say why")

    def end(self) -> None:
        while self.idle:
            self.idle.pop().close()
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)  # for a forked child of ours that holds it too
        self.door.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def close(self) -> None:
        """End the worker, once a batch in another thread is done; a forked child that inherited it must not."""
        if os.getpid() == self.owner:
            waited = self.lock.acquire(timeout=CLOSE_SECONDS)
            self.end()
            if waited:
                self.lock.release()


settings = PoolSettings()
shared: Pool | None = None
making = threading.Lock()


def configure(wanted: PoolSettings) -> None:
    """The settings of this process's pool, from the next batch on."""
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
