"""The workers: real processes, really killed."""

import asyncio
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import wait_for

from grpo_math.errors import UserError
from grpo_math.grading import PoolSettings, configure, grade, grade_batch
from grpo_math.grading.batch import known
from grpo_math.grading.pool import WORKER, Pool, pool

SLOW = r"e^{e^{e^{e^{e^{e}}}}}"  # math_verify takes for ever over this one
EASY = (r"\sin^2 x", r"1-\cos^2 x")
HOSTILE = [
    r"9^{9^{9}}", r"2^{2^{2^{2^{2^{2}}}}}", "9**9**9**9", "(10^9)!", "((((9!)!)!)!)!", "100000!", "x^{1000000}", "(x+y)^{1000}",
    r"\binom{10^9}{5\cdot10^8}", "(" * 5000 + "1" + ")" * 5000, "{" * 5000 + "1" + "}" * 5000, "-" * 900 + "1", r"\pm" * 300,
    r"\left(" * 2000 + "1" + r"\right)" * 2000, r"\sqrt{" * 3000 + "2" + "}" * 3000, "+".join(["1"] * 20000), "x^" * 450 + "x",
    "+".join(f"x^{{{i}}}" for i in range(20000)), "9" * 100000, "0." + "3" * 100000, "1/" * 5000 + "1", "{" * 400 + "1" + "}" * 400,
    r"\frac{1}{" * 1500 + "2" + "}" * 1500, r"\frac{1}{1+" * 200 + "2" + "}" * 200, r"1\frac{" * 60 + "1" + "}{2}" * 60,
    r"\begin{pmatrix}" + r"\\".join(["&".join(["1"] * 100)] * 100) + r"\end{pmatrix}", ",".join(map(str, range(1, 101))),
    r"\{" + ",".join(map(str, range(5000))) + r"\}", "(x+y+z)^{100}", "(1+x)^{99}(1+y)^{99}", r"\sqrt{" + "9" * 300 + "}",
    r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}", r"\int_0^{1} e^{x^2} dx", r"\prod_{k=1}^{100000} k", r"\lim_{x \to \infty} x^{x}",
    r"\sin(9^{9^9})", r"\log(10^{10^{10}})", r"\ln(9!!!!)", "1e999999999", "1e-999999999", r"10^{-10^{9}}", "2^{99999999}",
    r"\frac{1}{10^{100000}}", SLOW, r"\tan^{100}(x)+\sec^{99}(x)", r"\sqrt[100]{2}^{10000}", r"x^{x^{x^{x}}}", "|" * 500,
    r"\gcd(10^{50}, 9^{70})", r"\lfloor 10^{9^9} \rfloor", r"\lceil 9^{99999} \rceil", r"\cos(10^{1000})", r"i^{i^{i}}",
    r"(\sin x+\cos x)^{200}", r"\underbrace{1+1+\cdots+1}_{10^9}", "word " * 200000, r"\text{" + "lorem " * 100000 + "}",
    r"\tan(\tan(\tan(\tan(x))))^{60}", r"\sin((\sin((\sin((x+y)^{30})+1)^{30})+1)^{30})",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_pool():
    """Every test begins without workers and without remembered verdicts, and leaves none behind."""
    known.clear()
    configure(PoolSettings(workers=2))
    yield
    pool.close()
    configure(PoolSettings())
    wait_for(lambda: workers_alive() == 0, 10)


def workers_alive() -> int:
    """The process that forks workers and the workers of this process, zombies included."""
    return len(family(os.getpid()))


def family(pid: int) -> list[psutil.Process]:
    """The processes that fork workers for a process, and their workers."""
    parents = [child for child in psutil.Process(pid).children() if str(WORKER) in command(child)]
    return parents + [worker for parent in parents for worker in parent.children(recursive=True)]


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # a zombie: whoever it was
        return [str(WORKER)]


def hostile_batch() -> tuple[list[str], list[str]]:
    answers = ["4"] * 4 + HOSTILE
    texts = [f"so \\boxed{{{answer}}}" for answer in answers]
    texts.append(r"\boxed{" * 50_000)
    return ["4"] * len(texts), texts


def check(grades) -> None:
    assert [g.correct for g in grades] == [True] * 4 + [False] * (len(grades) - 4)


def test_64_hostile_completions_end_soon_and_the_good_ones_among_them_are_right():
    golds, texts = hostile_batch()
    assert len(texts) >= 64
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grades = grade_batch(texts, golds, "boxed")
    check(grades)
    assert {"timeout", "too_long"} <= {g.how for g in grades}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB
    assert workers_alive() <= 3


def test_long_answers_leave_no_memory_behind():
    letters = random.Random(0)
    texts = [rf"\boxed{{{' '.join(letters.choices('xyzabc+-', k=1_900))}}}" for _ in range(1_000)]
    before = psutil.Process().memory_info().rss
    assert {grade.how for grade in grade_batch(texts, ["42"] * len(texts), "boxed")} == {"too_long"}
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


def test_the_hostile_batch_returns_in_a_thread_and_in_an_asyncio_task():
    golds, texts = hostile_batch()
    found = []
    thread = threading.Thread(target=lambda: found.append(grade_batch(texts, golds, "boxed")))
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    known.clear()

    async def task():
        return await asyncio.to_thread(grade_batch, texts, golds, "boxed"), grade(r"\boxed{4}", "4", "boxed")

    grades, good = asyncio.run(task())
    check(found[0])
    check(grades)
    assert good.correct


def test_threads_may_grade_at_the_same_time():
    found = {}

    def work(name: int) -> None:
        found[name] = grade_batch([f"\\boxed{{{name}-\\cos^2 x}}"] * 3, [r"\sin^2 x"] * 3, "boxed")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: grades[0].correct for name, grades in found.items()} == {name: name == 1 for name in range(6)}


def test_a_late_worker_is_killed_and_replaced_and_the_next_answer_is_graded():
    configure(PoolSettings(workers=1, timeout=2))
    assert pool.run([EASY]) == [(True, "math_verify")]
    parent, first = family(os.getpid())
    assert pool.run([("4", SLOW), EASY]) == [(False, "timeout"), (True, "math_verify")]
    same_parent, second = family(os.getpid())
    assert same_parent == parent
    assert not first.is_running()
    assert second != first


def test_a_timeout_is_not_remembered():
    configure(PoolSettings(workers=1, timeout=0.5))
    assert grade(f"\\boxed{{{SLOW}}}", "4", "boxed").how == "timeout"
    assert known == {}


def test_a_worker_that_dies_counts_as_crashed():
    configure(PoolSettings(workers=1, timeout=30))
    assert pool.run([EASY]) == [(True, "math_verify")]
    victim = family(os.getpid())[1].pid
    threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
    assert pool.run([("4", SLOW), EASY]) == [(False, "crashed"), (True, "math_verify")]


def test_a_worker_killed_between_batches_is_replaced():
    configure(PoolSettings(workers=1))
    assert pool.run([EASY]) == [(True, "math_verify")]
    os.kill(family(os.getpid())[1].pid, signal.SIGKILL)
    time.sleep(0.2)
    assert pool.run([EASY]) == [(True, "math_verify")]


def test_memory_is_capped():
    code = "import grpo_math.grading.worker as v; v.verify = lambda g, a: g == '1' or [0] * 10**9"
    assert of_a_worker(code, ("4", "4"))[0] == [False, "crashed"]


def test_an_exception_of_math_verify_costs_one_answer():
    code = "import grpo_math.grading.worker as v; v.verify = lambda g, a: g == '1' or 1 / 0"
    assert of_a_worker(code, ("4", "4"))[0] == [False, "crashed"]


def of_a_worker(before: str, job: tuple[str, str], after: str = "pass") -> tuple[list, bytes]:
    """A worker's verdict on a job, and the stderr of the process that forked it, which runs `before` and `after`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    serve = f"from grpo_math.grading.worker import serve; serve(socket.socket(fileno={theirs.fileno()}), 20, 1, 1)"
    code = f"import socket, sys; {before}; {serve}; {after}"
    parent = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    with ours:
        theirs.close()
        assert ours.recv(64) == b"ready"
        ours.send(json.dumps((0, *job)).encode())
        (worker, started), (same, *verdict) = (json.loads(ours.recv(64)) for _ in range(2))
        assert (started, same) == (0, worker)
    return verdict, parent.communicate(timeout=20)[1]


def test_a_worker_that_cannot_start_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="the workers do not start"):
        Pool(PoolSettings(workers=1)).run([EASY])


def test_ten_thousand_mixed_answers_leave_no_process_behind():
    code = """
import random
from grpo_math.grading import grade_batch
random.seed(0)
answers = [str(n) for n in range(40)] + [r"1-\\cos^2 x", r"\\frac12", "x^{1000000}", "(1,2)", r"\\log_2 8", "9!" * 200]
texts = [f"\\\\boxed{{{random.choice(answers)}}}" for _ in range(10_000)]
golds = [random.choice(["3", "1/2", r"\\sin^2 x"]) for _ in texts]
grades = grade_batch(texts, golds, "boxed")
print(sum(bool(g.correct) for g in grades), {g.how for g in grades})
"""
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    begun = set()
    while done.poll() is None:
        begun |= set(psutil.Process(done.pid).children(recursive=True))
        time.sleep(0.1)
    assert done.returncode == 0
    assert "math_verify" in done.stdout.read()
    assert begun
    assert not psutil.wait_procs(begun, 20)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(number):
    code = f"from grpo_math.grading import grade; print('on', flush=True); grade(r'\\boxed{{{SLOW}}}', '4', 'boxed')"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout.readline() == b"on\n"
    begun = []
    while len(begun) < 2:  # the process that forks, and a worker
        assert parent.poll() is None
        time.sleep(0.1)
        begun = family(parent.pid)
    time.sleep(1)  # the worker is at work now
    parent.send_signal(number)
    parent.wait(20)
    assert not psutil.wait_procs(begun, 20)[1]


def test_ctrl_c_in_the_middle_leaves_a_pool_that_works():
    configure(PoolSettings(workers=1, timeout=30))
    assert pool.run([EASY]) == [(True, "math_verify")]
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pool.run([("4", SLOW)])
    assert workers_alive() == 0
    assert pool.run([EASY]) == [(True, "math_verify")]


def test_a_worker_imports_neither_torch_nor_trl():
    listing = "print([m for m in ('torch', 'trl', 'transformers') if m in sys.modules], file=sys.stderr)"
    assert of_a_worker("pass", EASY, listing) == ([True, "math_verify"], b"[]\n")


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_parent_of_workers_killed_before_or_in_a_batch_is_replaced_and_its_workers_end(seconds):
    configure(PoolSettings(workers=2, timeout=4))
    assert pool.run([EASY, EASY]) == [(True, "math_verify")] * 2
    parent, *orphans = family(os.getpid())
    threading.Timer(seconds, parent.kill).start()
    time.sleep(0.2)
    verdicts = pool.run([("4", SLOW), ("4", SLOW), EASY, EASY])
    assert verdicts == [(False, "timeout")] * 2 + [(True, "math_verify")] * 2
    psutil.wait_procs(orphans, 10)
    assert not any(orphan.is_running() and orphan.status() != "zombie" for orphan in orphans)


@pytest.mark.slow
def test_a_thousand_kills_leave_no_zombie():
    configure(PoolSettings(workers=2, timeout=0.1))
    slow = [("4", f"{SLOW}+{n}") for n in range(1_000)]
    assert {how for _, how in pool.run(slow)} <= {"timeout", "crashed"}
    assert workers_alive() <= 3
