"""The processes behind the pool. `python -m grpo_math.grading.worker FD SECONDS GIB` imports math_verify once, and
forks a worker in milliseconds for every descriptor that comes through the socket FD.

It is a fresh interpreter: without CUDA and threads, without torch and trl. A worker reads a gold and an answer, one
JSON message per job, and replies with one of LINES. Its own alarm ends it when a job takes longer than SECONDS, so
that no worker outlives its deadline, whatever happens to its parents. A job that needs more than GIB of memory fails.
"""

import json
import logging
import os
import resource
import select
import signal
import socket
import sys

MAX_MESSAGE = 2**18  # bytes; a gold and an answer have some thousand characters each
LINES = {True: b"true", False: b"false", None: b"null"}
CRASHED = b"crashed"


def messages(end: socket.socket):
    """Messages with their descriptors, until the other end closes or the parent dies (whose child may hold that
    end)."""
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([end], [], [], 5)[0]:
            message, descriptors, *_ = socket.recv_fds(end, MAX_MESSAGE, 1)
            if not message:
                return
            yield message, descriptors


def serve(door: socket.socket, seconds: float, memory_gib: float) -> None:
    logging.disable(logging.CRITICAL)
    cap = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    from grpo_math.grading.verify import verify

    verify("1", "1")  # loads lazy imports outside the first job's time limit
    door.send(b"ready")
    for _, (descriptor,) in messages(door):
        if os.fork() == 0:
            door.close()
            work(socket.socket(fileno=descriptor), seconds)
            os._exit(0)
        os.close(descriptor)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with all workers


def work(master: socket.socket, seconds: float) -> None:
    from grpo_math.grading.verify import verify

    for job, _ in messages(master):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            line = LINES[verify(*json.loads(job))]
        except Exception:
            line = CRASHED
        signal.setitimer(signal.ITIMER_REAL, 0)
        master.send(line)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]))
