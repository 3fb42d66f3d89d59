"""The processes behind the pool. `python -P worker.py FD SECONDS GIB SIZE` loads math_verify once, in a fresh
interpreter without CUDA, threads, torch, trl and this package, and keeps SIZE forked workers at work.

All workers share the socket FD. A job is one message in JSON, `[job, gold, answer]`, both normalised; one of them gets
it. It sends `[pid, job]` when it starts, then `[pid, correct, how]`. Its own alarm ends it when a job takes more than
SECONDS of CPU time, and its parent sends `[pid, false, "timeout"]`. A job that needs more than GIB of memory fails.
"""

import ctypes
import gc
import json
import logging
import os
import re
import resource
import signal
import socket
import sys

MAX_MESSAGE = 2**18  # bytes, as in pool.py
PR_SET_PDEATHSIG = 1
PRECISION = 1_100  # of numeric comparisons: more than an answer can write down, so that no approximation passes
DECIMAL = re.compile(r"(\d*)\.(\d+)")  # math_verify rounds it
BARE = [
    re.compile(rf"({before})\s*(\\[a-zA-Z]+|\w)") for before in (r"\\frac", r"\\frac\{[^{}]*\}")
]  # it misreads \frac12


def verify(gold: str, answer: str) -> bool | None:
    """Whether math_verify takes the two for equal, None when it cannot read the gold. It may not terminate."""
    import math_verify

    wanted, given = parse(gold), parse(answer)
    if any(differ(one, other) for one in wanted for other in given):
        return False
    settings = {"timeout_seconds": None, "numeric_precision": PRECISION, "float_rounding": PRECISION}
    return math_verify.verify(wanted, given, **settings) if wanted else None


def differ(gold: object, answer: object) -> bool:
    """Whether sympy knows that they differ, or that one of several answers does: math_verify rounds 1/2025! to 0."""
    from sympy import Expr, FiniteSet

    answers = answer.args if isinstance(answer, FiniteSet) else (answer,)
    return isinstance(gold, Expr) and any(isinstance(one, Expr) and (gold - one).is_zero is False for one in answers)


def parse(text: str) -> list:
    """The text as one formula, with degrees in radians and i as the imaginary unit; nothing is picked out of it."""
    import math_verify
    from sympy import Expr, I

    text = text.replace(r"\degree", r"\cdot\frac{\pi}{180}")
    text = DECIMAL.sub(lambda found: rf"\frac{{{found[1]}{found[2]}}}{{1{'0' * len(found[2])}}}", text)
    for argument in BARE:
        text = argument.sub(r"\1{\2}", text)
    latex = [math_verify.LatexExtractionConfig()]
    found = math_verify.parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=None)
    symbols = {symbol: I for one in found if isinstance(one, Expr) for symbol in one.free_symbols if str(symbol) == "i"}
    return [one.subs(symbols) if isinstance(one, Expr) else one for one in found]


def serve(door: socket.socket, seconds: float, memory_gib: float, size: int) -> None:
    logging.disable(logging.CRITICAL)
    gc.disable()  # while much is loaded that stays
    cap = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    verify("1", r"\frac{\sin 2x}{2}")  # loads what is lazy and fills the parser's caches, before any job's time limit
    gc.freeze()
    gc.enable()
    door.send(b"ready")
    workers: set[int] = set()
    code = -1
    while code != 0:  # of a worker that found the other end of the socket closed
        while len(workers) < size:
            if (pid := os.fork()) == 0:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with this process
                work(door, seconds)
                os._exit(0)
            workers.add(pid)
        pid, status = os.wait()
        workers.remove(pid)
        if code := os.waitstatus_to_exitcode(status):
            door.send(json.dumps([pid, False, "timeout" if code == -signal.SIGPROF else "crashed"]).encode())


def work(door: socket.socket, seconds: float) -> None:
    while message := door.recv(MAX_MESSAGE):
        job, gold, answer = json.loads(message)
        door.send(json.dumps([os.getpid(), job]).encode())
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            correct = verify(gold, answer)
            verdict = correct, "unparsable_gold" if correct is None else "math_verify"
        except Exception:
            verdict = False, "crashed"
        signal.setitimer(signal.ITIMER_PROF, 0)
        door.send(json.dumps([os.getpid(), *verdict]).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
