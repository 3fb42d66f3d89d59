"""Mistakes a person can mend: one line each, no traceback, exit status 2."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """What was wrong, the rule, and the fix; one line a problem."""


class RewardError(UserError):
    """A reward function that raised or returned nonsense; only the process that met it knows."""


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 2 for a mistake, 130 for Ctrl-C.

    Under `accelerate launch` every process meets the same mistake; only the first one says it.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if rank == 0 or isinstance(error, RewardError):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted: continue with --resume_from_checkpoint auto", file=sys.stderr)
        return 130
    return 0
