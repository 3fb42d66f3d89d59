"""The processes behind the pool: a nursery imports math_verify once and forks a worker in milliseconds when asked.

`python -m grpo_math.grading.worker FD SECONDS GIB` is a nursery. It is a fresh interpreter that inherits neither CUDA
nor threads, imports neither torch nor trl, and may not grow over its memory cap, and so are its workers. Through the
socket FD it is asked, an integer at a time: 0 and a socket's descriptor for a new worker at the other end of that, or
a worker's process id to end that one. It answers with the process id. It ends its workers when it ends, which is when
its parent does. A worker reads one JSON line a job and answers with one line.
"""

import json
import logging
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator

NUMBER = struct.Struct("!i")
NEW = 0
LINES = {True: b"true\n", False: b"false\n", None: b"null\n"}


def nursery(door: socket.socket, timeout: float, memory_gib: float) -> None:
    logging.disable(logging.CRITICAL)
    cap = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    from grpo_math.grading.verify import verify

    verify("1", "1")  # loads all it needs: the clock of the first job must not pay for it
    door.sendall(NUMBER.pack(os.getpid()))
    workers = set()
    for number, descriptors in requests(door):
        if number == NEW:
            number = fork(door, *descriptors, timeout)
            workers.add(number)
        else:
            end(number)
            workers.remove(number)
        door.sendall(NUMBER.pack(number))
    for worker in workers:
        end(worker)


def requests(door: socket.socket) -> Iterator[tuple[int, list[int]]]:
    while spoken_to(door):
        request, descriptors, *_ = socket.recv_fds(door, NUMBER.size, 1)
        if not request:
            return
        yield NUMBER.unpack(request)[0], descriptors


def spoken_to(end: socket.socket) -> bool:
    """Wait for something to read; False if the parent has died (a forked child of it may keep the socket open)."""
    parent = os.getppid()
    while not select.select([end], [], [], 5)[0]:
        if os.getppid() != parent:
            return False
    return True


def fork(door: socket.socket, descriptor: int, timeout: float) -> int:
    worker = os.fork()
    if worker:
        os.close(descriptor)
        return worker
    try:
        door.close()
        work(socket.socket(fileno=descriptor), timeout)
    finally:
        os._exit(0)


def end(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)


def work(master: socket.socket, timeout: float) -> None:
    """The life of a worker: one verdict a line, until its input ends."""
    from grpo_math.grading.verify import verify

    jobs = master.makefile("rb")
    while spoken_to(master) and (line := jobs.readline()):
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # should parent and nursery have died, die too
        try:
            verdict = verify(*json.loads(line))
        except MemoryError:
            return
        except Exception:  # what math_verify cannot compare is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        master.sendall(LINES[verdict])


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]))
