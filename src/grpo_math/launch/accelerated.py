"""`accelerate launch`, with the exit status of the process that failed first, and without tracebacks of its own."""

import logging
import signal
import subprocess
import sys

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # which defaults it took
    try:
        launch_command(launch_command_parser().parse_args())
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except ChildFailedError as error:  # a killed process comes first: the others lost it, and SIGTERM is accelerate's
        status = min(
            error.failures.values(), key=lambda one: (one.exitcode == -signal.SIGTERM, one.exitcode >= 0, one.timestamp)
        ).exitcode
    except SignalException as told:
        status = 128 + told.sigval
    else:
        return
    sys.exit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    main()
