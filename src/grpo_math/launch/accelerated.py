"""`accelerate launch`, with the exit status of the process that failed first, and without tracebacks of its own."""

import logging
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
        sys.exit(error.returncode)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException as told:
        sys.exit(128 + told.sigval)


if __name__ == "__main__":
    main()
