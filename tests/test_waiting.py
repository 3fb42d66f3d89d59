"""Async rewards keep all that rewards promise, and wait beside each other."""

import asyncio
import subprocess
import sys
import time

import pytest

from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import RewardError, UserError
from grpo_math.grading import grade_batch
from grpo_math.recipe.entries import reward_specs
from grpo_math.rewards import reward as rewards
from grpo_math.rewards.reward import RewardSpec, build_rewards, for_trl

BOXED = TEMPLATES["boxed"]
MINE = r"""
import asyncio, functools, sys, time
from grpo_math.errors import UserError

calls, meeting, loops = [], [], set()

async def judge(completions, log_metric=None, bonus=0, **_):
    calls.append(len(completions))
    await asyncio.sleep(0)
    if log_metric:
        log_metric("mine", 1.0)
    return [len(text) + bonus for text in completions]

def plain(completions, **_):
    calls.append(len(completions))
    return [len(text) for text in completions]

class Judge:
    async def __call__(self, completions, template, bonus=0, **_):
        return [len(text) + bonus for text in completions]

class Plain:
    def __call__(self, completions, bonus=0):
        return [len(text) + bonus for text in completions]

instance, plain_instance = Judge(), Plain()
partial = functools.partial(judge, bonus=0)
later = lambda completions, bonus=0, **_: judge(completions, bonus=bonus)

async def meet(completions, others, **_):
    meeting.append(completions)
    while len(meeting) < others:
        await asyncio.sleep(0)
    return [1.0] * len(completions)

async def same_loop(completions, **_):
    loops.add(asyncio.get_running_loop())
    return [len(loops)] * len(completions)

async def graded(completions, grades, **_):
    return [float(grade.correct) for grade in grades]

async def fails(completions, **_):
    return [1 / len(text) for text in completions]

async def leaves(completions, **_):
    sys.exit("no key")

async def mistaken(completions, **_):
    raise UserError("judge: no address: set JUDGE_URL")

async def impatient(completions, **_):
    await asyncio.wait_for(asyncio.sleep(60), 0.01)

async def sleeps(completions, **_):
    await asyncio.sleep(60)

async def stubborn(completions, **_):
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            pass

async def swallows(completions, **_):
    try:
        await asyncio.sleep(60)
    except BaseException:
        return [1.0] * len(completions)

async def blocks(completions, **_):
    time.sleep(0.5)
    return [1.0] * len(completions)
"""
TWO_GROUPS = {"prompts": ["p", "p", "q", "q"], "solution": ["4"] * 4}


@pytest.fixture
def build(tmp_path):
    """Rewards of MINE by the names of their functions, with what else is in their entries."""
    (tmp_path / "mine.py").write_text(MINE)

    def built(skip: bool = False, **entries: dict) -> list:
        specs = [RewardSpec(name=name, path=f"{tmp_path}/mine.py:{name}", **entry) for name, entry in entries.items()]
        return build_rewards(specs, BOXED, skip=skip)

    return built


def directly(reward, /, **given):
    return reward(**given)


def by_trl(reward, /, **given):
    return asyncio.run(for_trl(reward)(**given))


@pytest.mark.parametrize("name", ["judge", "instance", "plain_instance", "partial", "later"])
def test_whatever_can_be_called_may_be_a_reward_with_its_settings(build, tmp_path, name):
    problems = []
    entry = {"path": f"{tmp_path}/mine.py:{name}", "bonus": 10, "scale": 2.0, "bias": 1.0}
    (reward,) = build(**{name: {"params": {"bonus": 10}, "scale": 2.0, "bias": 1.0}})
    assert reward(prompts=["p"], completions=["abc"], solution=["1"]) == [27.0]
    (spec,) = reward_specs({"mine": entry}, problems)
    assert (spec.params, problems) == ({"bonus": 10}, [])


@pytest.mark.parametrize(
    ("name", "params", "line"),
    [
        ("plain_instance", {"bonsu": 1}, "rewards.plain_instance.bonsu: unknown key, did you mean bonus?"),
        (
            "Judge",
            {},
            "rewards.Judge.path: HERE/mine.py:Judge is a class: name an instance of it, created in that file",
        ),
        ("calls", {}, "HERE/mine.py:calls: HERE/mine.py has no function 'calls'"),
    ],
)
def test_what_cannot_be_one_is_one_line(build, tmp_path, name, params, line):
    with pytest.raises(UserError) as caught:
        build(**{name: {"params": params}})
    assert str(caught.value).replace(str(tmp_path), "HERE") == line


def test_trl_gets_coroutine_functions_of_async_rewards_alone(build):
    one = {"judge": {}, "instance": {}, "partial": {}, "plain": {}, "plain_instance": {}}
    shown = [for_trl(reward) for reward in build(**one)]
    assert [asyncio.iscoroutinefunction(function) for function in shown] == [True, True, True, False, False]
    assert [function.__name__ for function in shown] == list(one)
    assert for_trl(model := object()) is model


@pytest.mark.parametrize("count", [2, 40])
def test_async_rewards_wait_beside_each_other(build, count):
    """Each returns when all have begun: one after the other none would, and there is a deadline."""
    (reward,) = build(meet={"params": {"others": count}, "timeout": 60})

    async def together():
        return await asyncio.gather(*(for_trl(reward)(prompts=["p"], completions=["abc"]) for _ in range(count)))

    assert asyncio.run(together()) == [[1.0]] * count


def test_what_is_bound_to_its_loop_stays_good(build):
    (reward,) = build(same_loop={})
    given = {"prompts": ["p"], "completions": ["abc"]}
    assert [directly(reward, **given), by_trl(reward, **given), by_trl(reward, **given)] == [[1.0]] * 3


def test_two_that_want_the_verdicts_grade_once(build, monkeypatch):
    batches = []

    def slow(*batch):
        batches.append(batch)
        time.sleep(0.05)  # the other one comes
        return grade_batch(*batch)

    monkeypatch.setattr(rewards, "grade_batch", slow)
    (reward,) = build(graded={})

    async def together():
        given = {"prompts": ["p"], "completions": [r"\boxed{17}"], "solution": ["17"]}
        return await asyncio.gather(*(for_trl(reward)(**given) for _ in range(4)))

    assert asyncio.run(together()) == [[1.0]] * 4
    assert len(batches) == 1


@pytest.mark.parametrize("way", [directly, by_trl])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "fails",
            "reward fails: raised ZeroDivisionError: division by zero, mine.py:44; first of its 4 completions: 'a'. Fix",
        ),
        ("leaves", "reward leaves: raised RuntimeError: SystemExit: no key; first of its 4 completions: 'a'. Fix"),
        ("impatient", "reward impatient: raised TimeoutError; first of its 4 completions: 'a'. Fix"),
        *(
            (name, f"reward {name}: took longer than its timeout of 0.1 s; first of its 4 completions: 'a'. Fix")
            for name in ("sleeps", "stubborn", "swallows", "blocks")
        ),
    ],
)
def test_an_async_reward_that_fails_or_is_late_says_so_with_its_batch(build, way, name, line):
    late = "timeout" in line
    (reward,) = build(**{name: {"timeout": 0.1 if late else None}})
    with pytest.raises(RewardError) as caught:
        way(reward, completions=["a", "", "bb", "b"], **TWO_GROUPS)
    assert str(caught.value).startswith(line)
    assert caught.value.batch["completions"][2] == {"prompt": "q", "completion": "bb", "solution": "4"}


def test_the_loop_goes_on_after_one_that_left_or_hung(build):
    (reward,) = build(judge={"timeout": 60})
    assert by_trl(reward, prompts=["p"], completions=["abc"]) == [3.0]


def test_a_persons_mistake_stays_one(build):
    (reward,) = build(mistaken={}, skip=True)
    with pytest.raises(UserError, match=r"^judge: no address: set JUDGE_URL$"):
        by_trl(reward, prompts=["p"], completions=["a"])


@pytest.mark.parametrize("way", [directly, by_trl])
def test_groups_on_which_it_fails_are_skipped(build, way):
    logged = {}
    (reward,) = build(fails={}, skip=True)
    scores = way(reward, completions=["a", "", "bb", "a"], log_metric=logged.__setitem__, **TWO_GROUPS)
    assert (scores, logged) == ([None, None, 0.5, 1.0], {"rewards/fails/failed": 0.5})
    (reward,) = build(sleeps={"timeout": 0.1}, skip=True)
    assert way(reward, completions=["a"] * 4, **TWO_GROUPS) == [None] * 4


@pytest.mark.parametrize(("name", "gate"), [("plain", "judge"), ("judge", "plain"), ("judge", "instance")])
def test_an_async_reward_may_be_gated_and_be_a_gate(build, name, gate):
    reward, _ = build(**{name: {"gate": gate}, gate: {}})
    logged = []
    way = directly if name == "plain" else by_trl
    given = {"prompts": ["p", "p"], "completions": ["ab", ""], "log_metric": lambda *pair: logged.append(pair)}
    assert way(reward, **given) == [2.0, 0.0]
    assert logged == ([("mine", 1.0)] if name == "judge" else [])


def test_a_gate_that_was_asked_is_not_asked_again(build):
    """TRL calls async rewards last: a plain gate is not run in their threads, where no deadline would end it."""
    gate, judge = build(plain={}, judge={"gate": "plain"})
    calls = gate.function.__globals__["calls"]
    first, second = {"prompts": ["p"], "completions": ["abc"]}, {"prompts": ["p"], "completions": ["abc"]}
    assert [gate(**first), by_trl(judge, **first)] == [[3.0], [3.0]]
    assert len(calls) == 1
    assert by_trl(judge, **second) == [3.0]
    gate(**second)
    gate(**second)
    assert len(calls) == 4


def test_a_data_column_may_have_any_name(build):
    (reward,) = build(judge={})
    columns = {"self": ["x"], "function": ["y"], "reward": ["z"], "seconds": [1]}
    assert by_trl(reward, prompts=["p"], completions=["abc"], **columns) == [3.0]


CTRL_C = """
import asyncio, os, signal, sys, threading
from grpo_math.errors import run_cli
from grpo_math.data.prompts import TEMPLATES
from grpo_math.rewards.reward import RewardSpec, build_rewards
from grpo_math.rewards.waiting import in_thread

async def waits(completions, **_):
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            pass

def main(argv):
    (reward,) = build_rewards([RewardSpec(name="waits", path="__main__:waits")], TEMPLATES["boxed"])
    loop = asyncio.new_event_loop()  # as TRL does
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(in_thread(reward, prompts=["p"], completions=["c"]), loop).result()

sys.exit(run_cli(main))
"""


def test_ctrl_c_ends_the_process_while_one_waits_for_ever():
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in done.stderr
