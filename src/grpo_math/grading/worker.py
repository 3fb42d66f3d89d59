"""The processes behind the pool. `python -m grpo_math.grading.worker FD SECONDS GIB SIZE` loads math_verify once, in a
fresh interpreter without CUDA, threads, torch and trl, and keeps SIZE forked workers at work.

All workers share the socket FD. A job is one message, `[job, gold, answer]` in JSON, and one of them gets it. It sends
`pid job` when it starts, then `pid true`, `false`, `null` or `crashed`. Its own alarm ends it when a job takes longer
than SECONDS; then the parent sends `pid timeout`. A job that needs more than GIB of memory fails.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys

MAX_MESSAGE = 2**18  # bytes; a gold and an answer have some thousand characters each
PR_SET_PDEATHSIG = 1


def serve(door: socket.socket, seconds: float, memory_gib: float, size: int) -> None:
    logging.disable(logging.CRITICAL)
    cap = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    from grpo_math.grading.verify import verify

    verify("1", "1")  # loads lazy imports outside the first job's time limit
    door.send(b"ready")
    workers: set[int] = set()
    code = -1
    while code != 0:  # a worker ends in peace when the other end of the socket is closed
        while len(workers) < size:
            if (pid := os.fork()) == 0:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with this process
                work(door, seconds)
                os._exit(0)
            workers.add(pid)
        pid, status = os.wait()
        workers.remove(pid)
        if code := os.waitstatus_to_exitcode(status):
            door.send(f"{pid} {'timeout' if code == -signal.SIGALRM else 'crashed'}".encode())


def work(door: socket.socket, seconds: float) -> None:
    from grpo_math.grading.verify import verify

    while message := door.recv(MAX_MESSAGE):
        job, gold, answer = json.loads(message)
        door.send(f"{os.getpid()} {job}".encode())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = json.dumps(verify(gold, answer))
        except Exception:
            verdict = "crashed"
        signal.setitimer(signal.ITIMER_REAL, 0)
        door.send(f"{os.getpid()} {verdict}".encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
