"""A deadline for other people's Python."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Late(BaseException):
    """No `Exception`: the function that is late must not swallow it."""


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise Late after so many seconds, in the main thread; None is no deadline.

    Python code is interrupted wherever it is, and so are regular expressions and waits for a socket; C code that never
    returns to Python is not.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_) -> None:
        raise Late

    earlier = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where it was swallowed all the same
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
