"""Deadlines for other people's functions, and coroutines for callers that wait; no thread here keeps Python alive."""

import asyncio
import faulthandler
import functools
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

GRACE = 10  # seconds after a deadline at which a process that cannot run its own threads ends
starting = threading.Lock()


class Late(Exception):
    """The function did not return before its deadline."""


def call(function: Callable, given: dict, seconds: float | None) -> Any:
    """What the function returns for these arguments, awaited where it is awaitable, as a list where it is an iterator.

    Raises Late after so many seconds; None is no deadline. With one, the function runs in a thread of its own, where a
    late one is left alone (a late coroutine is cancelled). What never releases the interpreter's lock, such as a
    regular expression, stops this thread too: GRACE seconds later the traceback is printed and the process ends.
    """
    if seconds is None:
        found = as_list(function(**given))
    else:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            found = result(thread(lambda: as_list(function(**given))), seconds)
        finally:
            faulthandler.cancel_dump_traceback_later()
    if inspect.isawaitable(found):
        with starting:
            running = loop()
        found = result(asyncio.run_coroutine_threadsafe(outcome(found), running), seconds)
    return found


def as_list(scores: Any) -> Any:
    return list(scores) if isinstance(scores, Iterator) else scores


def thread(work: Callable[[], object]) -> Future:
    """What `work` returns, from a daemon thread: Python's exit would wait for those of an executor."""
    future: Future = Future()
    future.set_running_or_notify_cancel()  # from here on it cannot be cancelled

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="grpo-math-reward", daemon=True).start()
    return future


def result(future: Future, seconds: float | None) -> Any:
    try:
        if not wait([future], seconds).done:
            raise Late
        return future.result()
    finally:
        future.cancel()  # where it is late, or Ctrl-C came


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop of all coroutines here, in a daemon thread: what is bound to it, such as a client, stays valid."""
    ours = asyncio.new_event_loop()
    threading.Thread(target=ours.run_forever, name="grpo-math-loop", daemon=True).start()
    return ours


async def outcome(awaitable: Awaitable) -> Any:
    try:
        return as_list(await awaitable)
    except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and not the process
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


async def in_thread(function: Callable, /, **arguments: Any) -> Any:
    """As asyncio.to_thread, but in a daemon thread of its own."""
    return await asyncio.wrap_future(thread(lambda: function(**arguments)))
