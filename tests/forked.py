"""Only for tests: `grpo-math WORDS` in a process of its own, forked from one that has imported torch and TRL, which
takes longer than most of these commands. For tests of what a command does, not of how its process starts."""

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
    """It ends with the tests, when its input does. Other tests may have left settings for W&B in the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], env=environment, **pipes)


class Command:
    """A command that runs in this folder; `pid` is its process."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        self.output = folder / "output.txt"
        ONE_AT_A_TIME.acquire()
        print(json.dumps([words, str(folder), environment, str(self.output)]), file=parent().stdin, flush=True)
        self.pid = int(parent().stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Its exit status and its output."""
        try:
            return int(parent().stdout.readline()), self.output.read_text()
        finally:
            ONE_AT_A_TIME.release()


def grpo_math(words: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    """The exit status and the output of a command that is run in this folder."""
    return Command(words, folder, **environment).wait()


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
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        return
    os.chdir(folder)
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["grpo-math", *words]
    status = command()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an interpreter that ends would finalise what is the parent's


if __name__ == "__main__":
    main()
