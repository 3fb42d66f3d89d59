"""The live line on a real pseudo-terminal, and the plain lines in a pipe."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

PLAIN = "step 1/3  reward 0.5  accuracy 0.25  length 14  812 tokens/s  71% generating"
# The callback alone, driven as a training would, and the silent one of a second process, on a terminal or in a pipe; how
# it ends is the first word. Each case is a process forked from one that has imported torch, which takes longer than all.
CASES = r"""
import json, logging, os, sys, time, types
from pathlib import Path
from grpo_math.runs import folder as run_folder
from grpo_math.trainer.progress import Progress

for line in sys.stdin:
    how, folder, output, streams, environment = json.loads(line)
    descriptor = os.open(output, os.O_RDWR)
    if not (child := os.fork()):
        break
    os.close(descriptor)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
else:
    sys.exit()
for stream in streams:
    os.dup2(descriptor, stream)
os.close(descriptor)
sys.stdout.reconfigure(line_buffering=os.isatty(1))
os.environ.update(environment)
run_folder.log_to(Path(folder))
log = logging.getLogger("grpo_math.trainer.alarms")
alarms = types.SimpleNamespace(raised=set())
state = types.SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=3)
second = types.SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=3)
logs = {"loss": 0.1, "reward": 0.5, "accuracy": 0.25, "completions/mean_length": 14.0, "tokens_per_second": 812.3,
        "time/generate": 0.71, "step_time": 1.0}
with Progress(alarms) as progress, Progress(alarms) as silent:
    silent.on_train_begin(None, second, None)
    progress.on_train_begin(None, state, None)
    print("waiting", flush=True)
    time.sleep(600 if how == "wait" else 1.2)
    for state.global_step in (1, 2, 3):
        second.global_step = state.global_step
        silent.on_log(None, second, None, logs=logs)
        progress.on_log(None, state, None, logs=logs)
        if state.global_step == 2:
            alarms.raised.add("kl")
            log.info("alarm kl at step 2: too far")
            print("a warning on stderr", file=sys.stderr)
            if how == "raise":
                raise RuntimeError("no memory left")
        time.sleep(0.6)
    progress.on_train_end(None, state, None)
print("the end")
"""


class Case:
    """One process of CASES, like subprocess.Popen."""

    def __init__(self, cases: subprocess.Popen, *order):
        self.cases = cases
        print(json.dumps(order), file=cases.stdin, flush=True)
        self.pid = int(cases.stdout.readline())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(int(self.cases.stdout.readline()))


@pytest.fixture(scope="module")
def start():
    command = [sys.executable, "-c", CASES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cases:
        yield lambda *order: Case(cases, *order)
        cases.stdin.close()


class Screen:
    """A child on a pseudo-terminal, and what a person sees there: only what this child and rich send is understood."""

    def __init__(self, start, columns: int = 200):
        self.output, (self.master, slave) = b"", pty.openpty()
        self.child = start(slave, {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"})
        os.close(slave)

    def read(self, until: str = "", seconds: float = 120) -> str:
        """Everything it has written, once that holds a text or has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (not until or until not in self.output.decode()):
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.master, 65536)
                except OSError:  # the last one has closed it
                    break
        return self.output.decode()

    def lines(self) -> list[str]:
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.output.decode()):
            if part == "\n":
                row, column = row + 1, 0
            elif part == "\r":
                column = 0
            elif part == "\x1b[2K":
                lines[row] = ""
            elif re.fullmatch(r"\x1b\[\d*A", part):
                row -= int(part[2:-1] or 1)
            elif part[0] != "\x1b":
                lines += [""] * (row + 1 - len(lines))
                lines[row] = (lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]).rstrip()
                column += len(part)
            lines += [""] * (row + 1 - len(lines))
        return lines


@pytest.fixture
def on_terminal(start, tmp_path):
    def on_terminal(how: str) -> Screen:
        return Screen(lambda slave, settings: start(how, str(tmp_path), os.ttyname(slave), [0, 1, 2], settings))

    return on_terminal


def test_on_a_terminal_one_line_is_redrawn_and_all_else_stands_above_it(on_terminal, tmp_path):
    screen = on_terminal("finish")
    output = screen.read()
    assert screen.child.wait() == 0
    assert "step 0/3  0:00:00 elapsed" in re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "0:00:01 elapsed" in output  # between the logs
    *above, last, end, _ = screen.lines()
    assert above[-3:] == ["waiting", "alarm kl at step 2: too far", "a warning on stderr"]
    assert last.startswith("step 3/3  1 alarm  " + PLAIN.removeprefix("step 1/3  "))
    assert re.search(r"s/step  0:00:00 left  0:00:0\d elapsed$", last)
    assert end == "the end"
    assert "\x1b[?25l" not in output  # the cursor was never hidden
    log = (tmp_path / "training.log").read_text()
    assert [line.split(": ")[1][:8] for line in log.splitlines() if "tokens/s" in line] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_is_killed_the_terminal_is_sane(on_terminal, number):
    screen = on_terminal("wait")
    screen.read("elapsed")
    screen.child.send_signal(number)
    output = screen.read()
    assert screen.child.wait() != 0
    assert "\x1b[?25l" not in output
    assert "\x1b[?1049h" not in output
    assert output.rfind("\x1b[1m") < output.rfind("\x1b[0m")  # nothing stays bold


def test_after_an_exception_the_line_stays_and_the_traceback_is_whole(on_terminal):
    screen = on_terminal("raise")
    screen.read()
    assert screen.child.wait() == 1
    lines = screen.lines()
    line = next(place for place, text in enumerate(lines) if text.startswith("step 2/3"))
    assert lines[line + 1].startswith("Traceback")
    assert lines[-2] == "RuntimeError: no memory left"


def test_in_a_pipe_there_are_plain_lines(start, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    child = start("finish", str(tmp_path), str(tmp_path / "pipe"), [1], {"FORCE_COLOR": "1"})
    os.set_blocking(reader, True)
    with open(reader) as pipe:
        output = pipe.read().splitlines()
    assert child.wait() == 0
    assert output[0] == "waiting"
    assert output[1].startswith(f"{PLAIN}  1.2")
    assert re.search(r" s/step  0:00:0\d left$", output[1])
    assert [line[:8] for line in output[2:]] == ["step 2/3", "alarm kl", "step 3/3", "the end"]
    assert "INFO grpo_math.trainer.progress: step 1/3" in (tmp_path / "training.log").read_text()


@pytest.mark.slow
def test_a_training_on_a_narrow_terminal(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=3, eval={"every": 2, "before_after": True}, alarms={"steps": 2})
    command = [sys.executable, "-m", "grpo_math", "train", "--config", str(recipe)]
    screen = Screen(
        lambda slave, settings: subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | settings
        ),
        columns=60,
    )
    screen.read(seconds=200)
    assert screen.child.wait() == 0, screen.output.decode()
    text = "\n".join(screen.lines())
    assert text.count("before: accuracy") == text.count("step 2: accuracy") == text.count("after: accuracy") == 1
    assert [text.count(f"step {step}/3") for step in range(4)] == [0, 0, 0, 1]
    line = " ".join(text[text.index("step 3/3") : text.index("run folder:")].split())  # of two lines
    assert re.fullmatch(r"step 3/3 2 alarms reward 0 accuracy 0 length 8 .*s/step 0:00:00 left 0:00:\d\d elapsed", line)
    assert (tmp_path / "run" / "training.log").read_text().count("DEBUG grpo_math.trainer.progress: step") == 3
