"""The bars on a real pseudo-terminal, the plain lines in a pipe, and where the messages of libraries go."""

import contextlib
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from types import SimpleNamespace

import pytest

from grpo_math.errors import UserError
from grpo_math.recipe.parts import EvalSpec
from grpo_math.runs.logs import log_to, run_logging
from grpo_math.runs.progress import Bar
from grpo_math.trainer.callbacks import Evaluations
from grpo_math.trainer.progress import fitting, numbers

NUMBERS = "reward 0.5  accuracy 0.25  length 14"
# The callback alone, driven as a training would, and the silent one of a second process, on a terminal or in a pipe; how
# it ends is the first word. Each case is a process forked from one that has imported torch, which takes longer than all.
CASES = r"""
import json, logging, os, sys, time, types, warnings
from pathlib import Path
from grpo_math.runs.logs import log_to, run_logging
from grpo_math.runs.progress import Bar, stage
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
until_the_end = run_logging()
until_the_end.__enter__()
library = logging.getLogger("library")
library.propagate = False
library.addHandler(logging.StreamHandler())  # as transformers has
warnings.warn("an early warning")
log_to(Path(folder) / "training.log")
library.warning("a warning of a library")
if how == "finish":
    library.error("an error of a library")
log = logging.getLogger("grpo_math.trainer.alarms")
alarms = types.SimpleNamespace(raised=set())
state = types.SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=3)
evaluations = types.SimpleNamespace(seconds=0.0, ahead=lambda state: 0.0)
second = types.SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=3)
logs = {"loss": 0.1, "reward": 0.5, "accuracy": 0.25, "completions/mean_length": 14.0, "tokens_per_second": 812.3,
        "time/generate": 0.71, "step_time": 1.0}
with stage("loading"):
    time.sleep(0.6)
with Progress(alarms, evaluations) as progress, Progress(alarms, evaluations) as silent:
    silent.on_train_begin(None, second, None)
    progress.on_train_begin(None, state, None)
    print("waiting", flush=True)
    time.sleep(600 if how == "wait" else 1.2)
    for state.global_step in (1, 2, 3):
        second.global_step = state.global_step
        silent.on_step_end(None, second, None)
        progress.on_step_end(None, state, None)
        silent.on_log(None, second, None, logs=logs)
        progress.on_log(None, state, None, logs=logs)
        if state.global_step == 2:
            alarms.raised.add("kl")
            log.info("alarm kl at step 2: too far")
            print("a warning on stderr", file=sys.stderr)
            if how == "raise":
                raise RuntimeError("no memory left")
        with Bar(f"step {state.global_step}: some test", 2, "problems") as bar:
            time.sleep(0.6)
            bar.update(1)
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
        while time.monotonic() < deadline and (not until or until.encode() not in self.output):
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.master, 65536)
                except OSError:  # the last one has closed it
                    break
        return self.output.decode(errors="ignore")

    def lines(self) -> list[str]:
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.output.decode(errors="ignore")):
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


def test_on_a_terminal_bars_are_redrawn_and_all_else_stands_above_them(on_terminal, tmp_path):
    screen = on_terminal("finish")
    output = re.sub(r"\x1b\[[0-9;]*m", "", screen.read())
    assert screen.child.wait() == 0
    assert re.search(r"loading [━╸╺ ]+ +0:00:00 elapsed", output)
    assert re.search(r"step 0/3 [━╸╺ ]+ +0% 0:00:00 elapsed", output)
    assert "0:00:01 elapsed" in output  # between the steps
    assert re.search(r"step 2: some test [━╸╺ ]+ 50% 0:00:00 elapsed  0:00:00 left", output)
    *above, bar, numbers, end, _ = screen.lines()
    assert above == [
        f"warnings of libraries are in {tmp_path}/training.log",
        "an error of a library",
        "waiting",
        "alarm kl at step 2: too far",
        "a warning on stderr",
    ]
    assert re.fullmatch(r"step 3/3 ━+ 100% 0:00:0\d elapsed  0:00:00 left", bar)
    assert re.fullmatch(rf"1 alarm  {NUMBERS}  812 tokens/s  71% generating  \d.\d\d s/step", numbers)
    assert end == "the end"
    assert "\x1b[?25l" not in output  # the cursor was never hidden
    log = (tmp_path / "training.log").read_text()
    assert [line.split(": ")[1][:8] for line in log.splitlines() if "tokens/s" in line] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
    ]
    for line in (
        "WARNING py.warnings: <string>:",
        "WARNING library: a warning of a library",
        "ERROR library: an error",
    ):
        assert line in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_is_killed_the_terminal_is_sane(on_terminal, number):
    screen = on_terminal("wait")
    screen.read("step 0/3")
    screen.child.send_signal(number)
    output = screen.read()
    assert screen.child.wait() != 0
    assert "\x1b[?25l" not in output
    assert "\x1b[?1049h" not in output
    assert output.rfind("\x1b[90m") < output.rfind("\x1b[0m")  # nothing stays grey


def test_after_an_exception_the_line_stays_and_the_traceback_is_whole(on_terminal):
    screen = on_terminal("raise")
    screen.read()
    assert screen.child.wait() == 1
    lines = screen.lines()
    line = next(place for place, text in enumerate(lines) if text.startswith("step 2/3"))
    assert lines[line + 1].startswith(NUMBERS)
    assert lines[line + 2].startswith("Traceback")
    assert lines[-2] == "RuntimeError: no memory left"


def test_in_a_pipe_there_are_plain_lines(start, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    child = start("finish", str(tmp_path), str(tmp_path / "pipe"), [1], {"FORCE_COLOR": "1"})
    os.set_blocking(reader, True)
    with open(reader) as pipe:
        output = pipe.read().splitlines()
    assert child.wait() == 0
    assert output[2:4] == ["loading ...", "waiting"]
    assert re.fullmatch(rf"step 1/3  {NUMBERS}  1.2\d s/step  0:00:02 left", output[4])
    assert [line[:8] for line in output[5:]] == ["step 2/3", "alarm kl", "step 3/3", "the end"]
    log = (tmp_path / "training.log").read_text()
    assert f"INFO grpo_math.trainer.progress: step 1/3  {NUMBERS}  812 tokens/s  71% generating  1.2" in log


def state_of_logging():
    changed = [logging.getLogger(name) for name in ("grpo_math", "vllm", None)]
    found = [(one.handlers[:], one.level, one.propagate) for one in changed]
    return found, logging.raiseExceptions, warnings.showwarning


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_the_end_of_a_run_restores_the_logging_of_the_process(level, tmp_path, monkeypatch, capsys):
    """However it ends, where it contains another run, and whatever the process had set."""
    ours, root = logging.getLogger("grpo_math"), logging.getLogger()
    monkeypatch.setattr(ours, "level", level)
    monkeypatch.setattr(ours, "propagate", level == logging.NOTSET)
    monkeypatch.setattr(logging, "raiseExceptions", level == logging.NOTSET)
    logging.captureWarnings(level == logging.ERROR)
    before = state_of_logging()

    @run_logging()
    def run(name, error=None, inside=None):
        ours.info("%s begins", name)
        if name == "early":
            raise error
        log_to(tmp_path / name)
        warnings.warn(f"a warning of {name}", stacklevel=2)
        root.error("an error of %s", name)
        if inside:
            inside()
        ours.info("%s ends", name)
        if error:
            raise error

    try:
        for place, error in enumerate((None, UserError("no"), KeyboardInterrupt(), RuntimeError("no"))):
            with pytest.raises(type(error)) if error else contextlib.nullcontext():
                run(f"{place}", error, inside=lambda: run("inner"))
            assert state_of_logging() == before
            with pytest.raises(UserError):
                run("early", UserError("no"))
            assert state_of_logging() == before
            log = (tmp_path / f"{place}").read_text()
            for line in ("begins", "ends"):
                assert log.count(f"INFO grpo_math: {place} {line}") == log.count(f"INFO grpo_math: inner {line}") == 1
            assert [log.count(f"a warning of {name}\n") for name in (place, "inner")] == [1, 1]
            assert [log.count(f"ERROR root: an error of {name}") for name in (place, "inner")] == [1, 1]
            assert "early" not in log
            printed = capsys.readouterr().out
            assert [printed.count(f"{name} ends") for name in (place, "inner")] == [1, 1]
        assert (tmp_path / "inner").read_text().count("inner ends") == 4
    finally:
        logging.captureWarnings(False)


def test_no_line_is_wider_than_80_columns():
    logs = {"reward": -1 / 3, "accuracy": 1 / 3, "kl": 0.0123456, "completions/mean_length": 12345.67}
    logs |= {"tokens_per_second": 12345.6, "time/generate": 0.5, "step_time": 1.0}
    line = {"step": "step 10000/20000"} | dict(numbers(logs)) | {"s/step": "123.45 s/step", "left": "123:45:67 left"}
    assert fitting(line, 80) == "step 10000/20000  reward -0.3333  accuracy 0.3333  123:45:67 left"
    assert fitting(line, 200) == "  ".join(line.values())


def test_the_pace_is_that_of_the_last_steps():
    """Without the seconds that belong to no step, and with those ahead."""
    bar = Bar("", 100)
    for step in range(1, 51):
        bar.update(step)
    bar.marks = deque([(1000.0 + 2 * (step - 30), step) for step in range(30, 51)])
    assert bar.pace == pytest.approx(2)
    assert bar.left == pytest.approx(100)
    spec = EvalSpec(every=10, before_after=True)
    evaluations = SimpleNamespace(spec=spec, benchmarks=[1], seconds=6.0, count=2)
    ahead = {
        step: Evaluations.ahead(evaluations, SimpleNamespace(global_step=step, max_steps=40))
        for step in (0, 10, 39, 40)
    }
    assert ahead == {0: 12.0, 10: 9.0, 39: 3.0, 40: 3.0}
    evaluations.spec = EvalSpec(every=10)
    assert Evaluations.ahead(evaluations, SimpleNamespace(global_step=39, max_steps=40)) == 3.0
    assert Evaluations.ahead(evaluations, SimpleNamespace(global_step=40, max_steps=40)) == 0.0


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
    assert [len(re.findall(rf"^step {step}/3", text, re.MULTILINE)) for step in range(4)] == [0, 0, 0, 1]
    bar, numbers = text[text.index("step 3/3") :].splitlines()[:2]
    assert re.fullmatch(r"step 3/3 ━+ 100% 0:\d\d:\d\d elapsed  0:\d\d:\d\d left", bar)
    assert re.fullmatch(r"2 alarms  reward 0  accuracy 0  length 8  .*s/step", numbers)
    assert max(len(line) for line in screen.lines()[-9:] if str(tmp_path) not in line) <= 60
    assert (tmp_path / "run" / "training.log").read_text().count("DEBUG grpo_math.trainer.progress: step") == 3
