"""Whoever is killed, nobody is left: real processes, counted."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import wait_for

# A supervisor with a child that makes a daemon in a session of its own and then ignores SIGTERM, as a vLLM server may.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]], start_new_session=True)
if len(sys.argv) > 2:
    os._exit(0)
time.sleep(600)
"""
LAUNCHER = f"""
import sys, time
from grpo_math.generation import processes
processes.GRACE = 1
mark, how = sys.argv[1:]
def work():
    child = processes.start([sys.executable, "-c", {STUBBORN!r}, mark, *(["orphan"] if how == "orphan" else [])], {{}})
    print("started", flush=True)
    if how == "orphan":
        child.wait()
        return 7
    if how == "raise":
        time.sleep(0.5)
        raise SystemExit(3)
    child.wait()
sys.exit(processes.supervised(work))
"""


def family(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if mark in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture
def launch(request, tmp_path):
    mark = f"mark-{os.getpid()}-{request.node.name}"

    def start(how: str = "wait"):
        front = subprocess.Popen([sys.executable, "-c", LAUNCHER, mark, how], stdout=subprocess.PIPE, text=True)
        assert front.stdout.readline() == "started\n"
        return front, mark

    yield start
    for process in family(mark):
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_even_who_ignores_it(launch, number):
    front, mark = launch()
    wait_for(lambda: len(family(mark)) == 4)  # front, supervisor, child, daemon
    front.send_signal(number)
    assert front.wait(20) == 128 + signal.SIGTERM
    assert family(mark) == []


def test_a_signal_to_everybody_is_one_signal(tmp_path):
    """As `timeout` and SLURM send it; the work may finish what it has begun."""
    saving = """
import sys, time
from grpo_math.generation import processes
def work():
    try:
        print("started", flush=True)
        time.sleep(600)
    except processes.Stopped:
        time.sleep(0.5)
        print("saved", flush=True)
    return 0
sys.exit(processes.supervised(work))
"""
    front = subprocess.Popen([sys.executable, "-c", saving], stdout=subprocess.PIPE, text=True)
    assert front.stdout.readline() == "started\n"
    everybody = [front.pid, *(child.pid for child in psutil.Process(front.pid).children(recursive=True))]
    for pid in everybody:
        os.kill(pid, signal.SIGTERM)
    assert front.stdout.read() == "saved\n"
    assert front.wait(10) == 0


def test_a_signal_during_the_clean_up_changes_nothing(launch):
    front, mark = launch()
    wait_for(lambda: len(family(mark)) == 4)
    sorted(family(mark), key=lambda process: process.create_time())[1].kill()
    time.sleep(0.3)
    front.send_signal(signal.SIGTERM)
    front.wait(20)
    assert family(mark) == []


def test_what_nobody_expected_shows_its_traceback():
    code = "import sys\nfrom grpo_math.generation import processes\nsys.exit(processes.supervised(lambda: 1 / 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["front", "supervisor", "child", "daemon"])
def test_kill_9_of_anyone_leaves_nobody(launch, victim):
    front, mark = launch()
    wait_for(lambda: len(family(mark)) == 4)
    by_age = sorted(family(mark), key=lambda process: process.create_time())
    by_age[victim].kill()
    if victim == 3:  # nobody's end but its own
        wait_for(lambda: len(family(mark)) == 3)
        front.send_signal(signal.SIGTERM)
    wait_for(lambda: family(mark) == [])
    front.wait(20)


def test_a_childs_orphans_are_ended_with_the_work_and_its_status_is_passed_on(launch):
    front, mark = launch("orphan")
    assert front.wait(20) == 7
    assert family(mark) == []


def test_an_early_exit_ends_all(launch):
    front, mark = launch("raise")
    assert front.wait(20) == 3
    assert family(mark) == []
