"""Mistakes that the user can correct: one line each, no traceback, exit status 2."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError


class UserError(Exception):
    """What was wrong, the rule, and the fix; one line per problem."""


class RewardError(UserError):
    """A reward function that raised, was late or returned nonsense; only the process that met it knows. `batch` is what
    it was given."""

    batch: dict


REFUSALS = (ImportError, OSError, TypeError, ValueError, ZeroDivisionError, UnpicklingError)


@contextmanager
def one_line(what: str, fix: str = "", kinds: tuple[type[Exception], ...] = REFUSALS) -> Iterator[None]:
    """Turn what TRL or transformers say of a bad setting or a missing model into one line: `what: reason: fix`."""
    try:
        yield
    except kinds as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, UnpicklingError):  # torch explains how to load it all the same
            reason = "a pickled file is damaged, or holds more than tensors and could run code"
        raise UserError(f"{what}: {reason}{fix and ': ' + fix}") from error


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 2 for a mistake, 130 for Ctrl-C, 1 where another process of the run
    has ended and this one lost its connection.

    Under `accelerate launch` every process meets the same mistake; only the first one of a machine says it.
    training.log keeps the traceback.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a faster 4-bit kernel for CPUs, in every run
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        logging.getLogger("grpo_math").debug("stopped by a mistake", exc_info=True)
        if rank == 0 or isinstance(error, RewardError):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "gloo" not in str(error) and type(error).__name__ not in ("DistBackendError", "DistNetworkError"):
            raise
        logging.getLogger("grpo_math").debug("lost another process of the run", exc_info=True)
        if rank == 0:
            print(f"error: no connection to another process of the run ({error})".splitlines()[0], file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted (a training run continues with --resume_from_checkpoint auto)", file=sys.stderr)
        return 130
    return 0


def suggestion(key: str, known: list[str], where: str, renamed: dict[str, str]) -> str:
    """The fix for an unknown key: what it is called here, or the nearest of the known ones."""
    if key in renamed:
        return f"use {renamed[key]}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {where}{near[0]}?"
    return f"the keys here are {', '.join(known)}" if len(known) <= 12 else "it is neither TRL's nor ours"
