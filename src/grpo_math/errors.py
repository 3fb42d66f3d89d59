"""Errors that the user can fix: one line each, no traceback, exit status 2."""

import difflib
import gc
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

WORKS_HERE = "what works here: grpo-math quickstart (make quickstart), a full GRPO run without GPU, vLLM and network"
PARENT = os.getppid()  # of a training, `accelerate launch`, which may end during the imports that follow

A = TypeVar("A")
B = TypeVar("B")


class UserError(Exception):
    """An error that the user can fix: what was wrong, the rule and the fix, one line per problem."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"error: {line}" for line in str(self).splitlines()]


class RewardError(UserError):
    """A reward function that raised, timed out or returned invalid scores, on one of the processes. `batch` is what
    it was given."""

    batch: dict


ROOMS = "|".join(map(re.escape, (str(Path(__file__).parent), sysconfig.get_path("stdlib"))))
NOT_OWN = re.compile(rf"<(?!template|unknown)|({ROOMS})/|.*-packages/")  # files of Python, of packages and of ours
REFUSALS = (ImportError, OSError, TypeError, ValueError, ZeroDivisionError, UnpicklingError)


@contextmanager
def one_line(what: str, fix: str = "", kinds: tuple[type[Exception], ...] = REFUSALS) -> Iterator[None]:
    """Turn an exception of TRL or transformers about a setting or a model into one line: `what: reason: fix`."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        reason = reason_of(error)
        if isinstance(error, UnpicklingError):  # torch's text explains how to load it anyway
            reason = "a pickled file is damaged, or holds more than tensors and could run code"
        raise UserError(f"{what}: {reason}{fix and ': ' + fix}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an exception's text (two where a list follows), or its type where it has none."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")


def raised(error: BaseException) -> str:
    """`RuntimeError: no luck, my_rewards.py:12`: what a user's code raised, and the innermost line of it."""
    reason = f"{type(error).__name__}: {reason_of(error)}" if str(error).strip() else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not NOT_OWN.match(frame.filename)]
    return ", ".join([reason, *(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-1:])])


def at_once(*checks: Callable[[], object] | bool, instead: str = "") -> None:
    """Run all checks (False is none), and raise one UserError with what they find, a line each, and what to do
    `instead` of several things."""
    found: list[str] = []
    for check in filter(callable, checks):
        try:
            check()
        except UserError as mistake:
            found += str(mistake).splitlines()
    if found:
        raise UserError("\n".join(dict.fromkeys([*found, instead] if instead and len(found) > 1 else found)))


def each(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """The results of the function, of all items; one UserError with what it finds wrong with any of them."""
    found: list[B] = []
    at_once(*(partial(lambda item: found.append(function(item)), item) for item in items))
    return found


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 2 for a UserError, 130 for Ctrl-C, 1 where another process of the run
    has ended and this one lost its connection.

    Under `accelerate launch` all processes raise the same error; only the first one of a machine prints it.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    gc.set_threshold(10_000)  # with Python's 700, importing torch and TRL takes a second longer
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if rank == 0 or isinstance(error, RewardError):
            for line in str(error).splitlines():
                print(line if line == WORKS_HERE else f"error: {line}", file=sys.stderr)
        return 2
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        if rank == 0:
            print(
                f"error: {error.filename or 'a file'}: {error.strerror}: check its path and its rights", file=sys.stderr
            )
        return 2
    except RuntimeError as error:
        if "gloo" not in str(error) and type(error).__name__ not in ("DistBackendError", "DistNetworkError"):
            raise
        if rank == 0:
            print(f"error: lost connection to another process of the run ({error})".splitlines()[0], file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted (a training run continues with --resume_from_checkpoint auto)", file=sys.stderr)
        return 130
    return 0


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of the known words, whatever its case, where one is similar enough (`cutoff` in [0, 1])."""
    lower = {one.lower(): one for one in known}
    return next((lower[one] for one in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)), None)


def some(words: list[str], most: int) -> str:
    """The first of the words, with commas, and "..." where they are more than `most`."""
    return ", ".join(words[:most]) + ", ..." * (len(words) > most)


def suggestion(key: str, known: list[str], where: str, renamed: dict[str, str]) -> str:
    """The fix for an unknown key: what it is called here, or the nearest of the known ones."""
    if key in renamed:
        return f"use {renamed[key]}"
    if ":" in key:
        return f"add a space after the colon: {key.replace(':', ': ', 1)}"
    if near := nearest(key, known):
        return f"did you mean {where}{near}?"
    return f"use one of {', '.join(known)}" if len(known) <= 12 else "not a key of TRL or grpo-math"
