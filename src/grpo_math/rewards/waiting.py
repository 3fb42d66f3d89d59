"""Coroutines for callers that wait, and waiting callers for coroutines; nothing here keeps the process from ending."""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait

from grpo_math.rewards.deadline import Late

starting = threading.Lock()


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop that runs all coroutines here, in a daemon thread: what is bound to it, such as a client, stays good."""
    ours = asyncio.new_event_loop()
    threading.Thread(target=ours.run_forever, name="grpo-math-loop", daemon=True).start()
    return ours


def result(awaitable: Awaitable, seconds: float | None):
    """What the awaitable returns, from a thread without a loop.

    Raises Late after so many seconds (None waits for ever), and cancels it; nobody waits for what goes on all the same.
    """
    with starting:
        running = loop()
    future = asyncio.run_coroutine_threadsafe(outcome(awaitable), running)
    try:
        if not wait([future], seconds).done:
            raise Late
        return future.result()
    finally:
        future.cancel()  # where it is late, or Ctrl-C came


async def outcome(awaitable: Awaitable):
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and not the process
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


async def in_thread(function: Callable, /, **arguments):
    """As asyncio.to_thread, in a daemon thread of its own: Python's exit would wait for those of to_thread, which are
    few besides."""
    answer = Future()
    answer.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def work() -> None:
        try:
            answer.set_result(function(**arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="grpo-math-reward", daemon=True).start()
    return await asyncio.wrap_future(answer)
