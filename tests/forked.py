"""Only for tests: `grpo-math WORDS` in a process of its own, forked from one that has imported torch and TRL, which
takes longer than most of these commands. For tests of what a command does, not of how its process starts."""

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

ONE_AT_A_TIME = threading.Lock()


@functools.cache
def parent() -> subprocess.Popen:
    """It ends with the tests, when its input does."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def grpo_math(words: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    """The exit status and the output of a command that is run in this folder."""
    output = folder / "output.txt"
    with ONE_AT_A_TIME:
        print(json.dumps([words, str(folder), environment, str(output)]), file=parent().stdin, flush=True)
        return int(parent().stdout.readline()), output.read_text()


def main() -> None:
    import trl.trainer.grpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import grpo_math.checks
    import grpo_math.trainer.callbacks
    import grpo_math.trainer.trainer  # noqa: F401
    from grpo_math.__main__ import main as command

    gc.freeze()
    for line in sys.stdin:
        words, folder, environment, output = json.loads(line)
        if not (child := os.fork()):
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        return
    atexit._clear()  # a temporary folder of W&B is the parent's to remove
    os.chdir(folder)
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["grpo-math", *words]
    sys.exit(command())


if __name__ == "__main__":
    main()
