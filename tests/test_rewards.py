"""Rewards are plain functions; what goes wrong in one names the reward, the sample and the fix."""

import functools
import json
import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.data.problem import Problem
from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import RewardError, UserError
from grpo_math.grading import grade_batch
from grpo_math.rewards.reward import REWARDS, Reward, RewardSpec, build_rewards, data_columns, gated, graded_names

BOXED, R1 = TEMPLATES["boxed"], TEMPLATES["r1_zero"]


def score(name: str, completions: list[str], solution: str = "4", template=BOXED, chat: bool = False, **columns):
    (reward,) = build_rewards([RewardSpec(name=name)], template)
    return call(reward, completions, [solution] * len(completions), chat, **columns)


def call(reward: Reward, completions: list[str], solution: list[str], chat: bool = False, **columns):
    """What TRL would call it with; a token is a character."""
    shaped = [[{"role": "assistant", "content": text}] for text in completions] if chat else completions
    ids = [[ord(character) for character in text] for text in completions]
    return reward(prompts=completions, completions=shaped, completion_ids=ids, solution=solution, **columns)


@pytest.mark.parametrize("chat", [False, True])
def test_correctness_and_format_on_plain_and_chat_completions(chat):
    texts = [r"2+2=4 so \boxed{4}", r"\boxed{5}", "4", ""]
    assert score("correctness", texts, chat=chat) == [1.0, 0.0, 0.0, 0.0]
    assert score("format", texts, chat=chat) == [1.0, 1.0, 0.0, 0.0]


def test_the_prefill_belongs_to_the_completion():
    texts = ["t</think> <answer>4</answer>", "<think>t</think> <answer>4</answer>", "t</think><answer>5</answer>"]
    assert score("correctness", texts, template=R1) == [1.0, 1.0, 0.0]
    assert score("format", texts, template=R1) == [1.0, 0.0, 1.0]


def test_an_unreadable_gold_cannot_be_scored_and_does_not_count_in_accuracy():
    logged = {}
    (reward,) = build_rewards([RewardSpec(name="correctness")], BOXED)
    boxes = [r"\boxed{4}", r"\boxed{4}"]
    assert reward(prompts=[], completions=boxes, solution=["", "4"], log_metric=logged.__setitem__) == [None, 1.0]
    shares = {"no_answer": 0.0, "timeouts": 0.0, "crashed": 0.0, "unparsable_gold": 0.5}
    assert logged == {"accuracy": 1.0, **{f"grading/{name}": share for name, share in shares.items()}}


def test_an_own_reward_reads_the_verdicts_that_correctness_reads(tmp_path, monkeypatch):
    from grpo_math.rewards import reward as rewards

    batches = []
    monkeypatch.setattr(rewards, "grade_batch", lambda *batch: batches.append(batch) or grade_batch(*batch))
    body = "def f(completions, grades, **_):\n    return [float(g.how == 'number') for g in grades]\n"
    reward = own(tmp_path, body)
    batch = {"prompts": ["", ""], "completions": [r"\boxed{8/2}", "none at all"], "solution": ["4", "4"]}
    assert reward(**batch) == [1.0, 0.0]
    assert build_rewards([RewardSpec(name="correctness")], BOXED)[0](**batch) == [1.0, 0.0]
    assert len(batches) == 1


RANGES = dict.fromkeys(REWARDS, (0.0, 1.0)) | {
    "cosine": (-1.0, 1.0),
    "overlong": (-1.0, 0.0),
    "repetition": (-1.0, 0.0),
}


@settings(deadline=None)  # the first call imports TRL
@given(st.lists(st.text(), min_size=1, max_size=4), st.booleans())
def test_shipped_rewards_never_raise_and_stay_in_their_range(texts, chat):
    for name, (low, high) in RANGES.items():
        assert all(low <= value <= high for value in score(name, texts, chat=chat))


@pytest.mark.parametrize("name", REWARDS)
def test_shipped_rewards_can_be_pickled_with_their_parameters(name):
    (reward,) = build_rewards([RewardSpec(name=name)], R1)
    again = pickle.loads(pickle.dumps(reward))
    assert again == reward
    assert again.__name__ == name


def own(tmp_path, body: str, **params) -> Reward:
    (tmp_path / "mine.py").write_text(body)
    return build_rewards([RewardSpec(name="mine", path=f"{tmp_path}/mine.py:f", params=params)], BOXED)[0]


def test_an_own_reward_gets_trls_columns_its_parameters_and_the_template(tmp_path):
    body = (
        "def f(completions, source, template, bonus=0, **kwargs):\n    return [len(c) + bonus for c in completions]\n"
    )
    reward = own(tmp_path, body, bonus=10)
    assert reward(prompts=["p"], completions=["abc"], source=["x"], solution=["1"]) == [13.0]


def test_an_own_file_hides_no_installed_module_and_may_import_its_neighbours(tmp_path):
    (tmp_path / "wandb.py").write_text(
        "from neighbour import VALUE\ndef f(completions, **_):\n    return [VALUE] * len(completions)\n"
    )
    (tmp_path / "neighbour.py").write_text("VALUE = 0.25\n")
    (reward,) = build_rewards([RewardSpec(name="mine", path=f"{tmp_path}/wandb.py:f")], BOXED)
    assert reward(prompts=[""], completions=["x"]) == [0.25]
    import wandb

    assert wandb.__version__


def test_an_own_reward_may_name_just_what_it_needs(tmp_path):
    reward = own(tmp_path, "def f(completions, source):\n    return [float(s == 'x') for s in source]\n")
    assert reward(prompts=[""], completions=["a"], source=["x"], solution=["1"]) == [1.0]


@pytest.mark.parametrize(
    ("takes", "graded"),
    [("completions", False), ("completions, template, n=1", False), ("completions, label", True), ("completions, completion_ids, log_metric", False),
     ("completions, solution", True), ("completions, grades", True), ("completions, worked", True),
     ("completions, prompts", True), ("completions, question", True), ("completions, **_", True)],
)  # fmt: skip
def test_an_own_reward_may_depend_on_the_solution_where_it_takes_more_than_the_completion(tmp_path, takes, graded):
    assert own(tmp_path, f"def f({takes}):\n    return [0.0]\n").graded is graded


def test_shipped_rewards_that_know_no_solution():
    built = build_rewards([RewardSpec(name=name) for name in REWARDS], BOXED)
    blind = {"format", "brevity", "overlong", "repetition", "steps", "language", "random"}
    assert {reward.spec.name for reward in built if not reward.graded} == blind


def test_the_first_of_the_graded_entries_can_be_a_gate():
    specs = [RewardSpec(name="model", reward_model="org/model"), RewardSpec(name="format", gate="correctness"),
             RewardSpec(name="steps"), RewardSpec(name="correctness")]  # fmt: skip
    assert graded_names(specs, build_rewards(specs, BOXED)) == ["correctness", "model", "format"]


def test_two_entries_of_one_function_have_two_names(tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, n=1, **_):\n    return [n] * len(completions)\n")
    specs = [RewardSpec(name=name, path=f"{tmp_path}/mine.py:f", params={"n": n}) for n, name in enumerate("ab")]
    rewards = build_rewards(specs, BOXED)
    assert [reward.__name__ for reward in rewards] == ["a", "b"]
    assert [reward(prompts=[""], completions=["x"]) for reward in rewards] == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1.0]", "reward mine: returned 1 scores for 2 completions: return one per completion"),
        ("[1.0, float('nan')]", "reward mine: returned nan for the completion 'second'"),
        ("[1.0, float('inf')]", "reward mine: returned inf for the completion 'second'"),
        ("['1.0', 1.0]", "reward mine: returned '1.0' for the completion 'first'"),
        ("[[1.0], 1.0]", "reward mine: returned [1.0] for the completion 'first'"),
        ("0.5", "reward mine: returned 0.5: return a list of floats"),
        ("{0: 1.0, 1: 1.0}", "reward mine: returned {0: 1.0, 1: 1.0}: return a list of floats"),
        ("[10**400, 1.0]", "reward mine: returned 1000000"),
        ("(1 / 0 for _ in completions)", "reward mine: raised ZeroDivisionError: division by zero, mine.py:2; first"),
        ("None", "reward mine: returned None: return a list of floats"),
        (
            "1 / 0",
            "reward mine: raised ZeroDivisionError: division by zero, mine.py:2; first of its 2 completions: 'first'. Fix",
        ),
        ("missing_name", "reward mine: raised NameError: name 'missing_name' is not defined, mine.py:2; first"),
        ("exec('raise RuntimeError')", "reward mine: raised RuntimeError, mine.py:2; first of its"),
        ("exec('raise OSError(\"one\\\\ntwo\")')", "reward mine: raised OSError: one, mine.py:2; first of its"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_bad_reward_is_an_error_not_a_zero(tmp_path, kind, returned, message):
    reward = own(tmp_path, f"{kind} f(completions, **_):\n    return {returned}\n")
    with pytest.raises(RewardError) as caught:
        reward(prompts=["", ""], completions=["first", "second"])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_of_other_libraries_are_numbers(tmp_path):
    reward = own(
        tmp_path,
        "import numpy, torch\ndef f(completions, **_):\n    return [numpy.float32(0.5), torch.tensor(1), True, None]\n",
    )
    assert reward(prompts=[], completions=["a"] * 4) == [0.5, 1.0, 1.0, None]


def test_an_own_reward_that_cannot_be_imported_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"importing .*mine.py failed \(ModuleNotFoundError: No module named 'nowhere', mine.py:1\)"
    ):
        own(tmp_path, "import nowhere\n")
    with pytest.raises(UserError, match=r"importing .*mine.py failed \(SystemExit: 7, mine.py:1\)"):
        own(tmp_path, "raise SystemExit(7)\n")
    with pytest.raises(UserError, match="has no function 'f'"):
        own(tmp_path, "def g(): ...\n")


def test_trls_own_rewards_work_by_their_path():
    spec = RewardSpec(name="think", path="trl.rewards:think_format_reward")
    (reward,) = build_rewards([spec], BOXED)
    chat = [[{"role": "assistant", "content": "<think>\nt\n</think>\n4"}], [{"role": "assistant", "content": "4"}]]
    assert reward(prompts=[None] * 2, completions=chat) == [1.0, 0.0]


def build(*specs: RewardSpec) -> list[Reward]:
    return build_rewards(list(specs), BOXED)


RIGHT, WRONG, BARE = r"so \boxed{4}", r"so \boxed{5}", "so 4"


def test_scale_and_bias_come_after_the_gate():
    scaled, _ = build(RewardSpec(name="correctness", scale=10, bias=-1, gate="format"), RewardSpec(name="format"))
    assert call(scaled, [RIGHT, WRONG, BARE], ["4"] * 3) == [9.0, -1.0, -1.0]


def test_a_gated_reward_counts_only_where_the_gate_earns_but_takes_away_always():
    assert [gated(score, key) for score in (0.5, -0.5, None) for key in (1.0, 0.0, None)] == [
        *(0.5, 0.0, None),
        *(-0.5, -0.5, None),
        *(None, None, None),
    ]
    brevity, _ = build(RewardSpec(name="brevity", gate="correctness"), RewardSpec(name="correctness"))
    scores = call(brevity, [RIGHT, WRONG, BARE], ["4"] * 3)
    assert scores[0] > 0.99
    assert scores[1:] == [0.0, 0.0]


def test_a_gate_logs_nothing_a_second_time():
    logged = []
    gated_entry, gate = build(RewardSpec(name="brevity", gate="correctness"), RewardSpec(name="correctness"))
    call(gated_entry, [RIGHT], ["4"], log_metric=lambda *metric: logged.append(metric))
    assert logged == []
    call(gate, [RIGHT], ["4"], log_metric=lambda *metric: logged.append(metric))
    assert [name for name, _ in logged if "/" not in name] == ["accuracy"]
    assert len(logged) == 5


def test_a_data_column_named_like_a_setting_is_not_the_setting():
    """The local JSON of many scripts has a column `correct`; `correctness` has a setting of that name."""
    (reward,) = build(RewardSpec(name="correctness", params={"wrong": -1.0}))
    assert call(reward, [RIGHT, WRONG, BARE], ["4"] * 3, correct=[False, False, True], wrong=["x"] * 3) == [1, -1, -1]


def test_rewards_get_the_columns_they_name_and_own_ones_with_kwargs_all_that_a_table_holds(tmp_path):
    (tmp_path / "own.py").write_text(
        "def named(completions, level, **_): ...\ndef few(completions, source): ...\ndef graded(completions, level=1): ...\n"
    )
    shipped = RewardSpec(name="correctness")
    named, few, graded = (
        RewardSpec(name=name, path=f"{tmp_path}/own.py:{name}") for name in ("named", "few", "graded")
    )
    held = {"source": "s", "picture": b"\0", "steps": [1], "mixed": None, "correct": None}
    problems = [Problem("q", "1", meta=held | {"level": n}) for n in range(2)]
    assert data_columns(build(shipped), problems) == (set(), "")  # `correct` is its setting
    assert data_columns(build(shipped, few), problems) == ({"source"}, "")
    assert data_columns(build(shipped, named), problems) == ({*held, "level"}, "")
    for odd in ("text", 10**30, 1j, {1: 2}, "\ud800"):
        problems[0] = Problem("q", "1", meta=held | {"level": 1, "mixed": 1})
        problems[1] = Problem("q", "1", meta=held | {"level": 1, "mixed": odd})
        left_out = "the rewards do not get mixed: the values have several types, or are too large"
        assert data_columns(build(named), problems) == ({*held, "level"} - {"mixed"}, left_out)
        problems[1].meta["level"] = odd
        assert data_columns(build(shipped, few), problems) == ({"source"}, "")
        with pytest.raises(UserError, match=r"^dataset: a reward reads the column level: .*: make it one type$"):
            data_columns(build(graded), problems)
    own = graded.model_copy(update={"params": {"level": 2}})  # a setting of the recipe
    assert data_columns(build(own), problems) == (set(), "")


def test_the_plus_minus_reward_tells_wrong_from_no_answer():
    (reward,) = build(RewardSpec(name="correctness", params={"correct": 1.0, "wrong": -1.0, "no_answer": -0.5}))
    assert call(reward, [RIGHT, WRONG, BARE, ""], ["4"] * 4) == [1.0, -1.0, -0.5, -0.5]
    assert call(reward, [RIGHT], [""]) == [None]


def test_a_reward_model_stays_a_path_until_the_model_is_loaded():
    rewards = build(RewardSpec(name="correctness"), RewardSpec(name="judge", reward_model="org/judge"))
    assert rewards[1] == "org/judge"


def test_a_data_column_may_have_any_name():
    (reward,) = build(RewardSpec(name="format"))
    assert call(reward, [RIGHT], ["4"], **{"self": ["x"], "function": ["y"], "name": ["z"]}) == [1.0]


FRAGILE = """
import re, time

done = []

def swallow():
    try:
        time.sleep(60)
    except:
        pass

def stubborn():
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)

def f(completions, completion_ids, log_metric, **_):
    log_metric("mine", 1.0)
    if "hang" in completions:
        try:
            {hang}
        except Exception:
            pass
    return [1 / len(c) for c in completions]
"""
TWO_GROUPS = {
    "prompts": ["p", "p", "q", "q"],
    "completion_ids": [[1]] * 4,
    "solution": ["1", "1", "2", "2"],
    "trainer_state": object(),
}


def fragile(tmp_path, hang: str = "pass", **settings) -> Reward:
    (tmp_path / "mine.py").write_text(FRAGILE.format(hang=hang))
    skip = settings.pop("skip", False)
    return build_rewards([RewardSpec(name="mine", path=f"{tmp_path}/mine.py:f", **settings)], BOXED, skip=skip)[0]


def test_a_failed_reward_keeps_what_it_was_given(tmp_path):
    with pytest.raises(RewardError) as caught:
        fragile(tmp_path)(completions=["a", "", "bb", "b"], log_metric=print, **TWO_GROUPS)
    batch = caught.value.batch
    assert batch["reward"] == "mine"
    assert batch["error"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert batch["completions"][1] == {"prompt": "p", "completion": "", "completion_ids": [1], "solution": "1"}
    json.dumps(batch)


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while not done: pass", "swallow()", "stubborn()"])
def test_a_reward_that_hangs_has_failed_at_its_deadline(tmp_path, hang):
    started = time.perf_counter()
    reward = fragile(tmp_path, hang, timeout=0.2)
    with pytest.raises(RewardError, match=r"reward mine: took longer than its timeout of 0.2 s; first of its 4"):
        reward(completions=["hang"] * 4, log_metric=print, **TWO_GROUPS)
    assert time.perf_counter() - started < 10
    reward.function.__globals__["done"].append(True)  # for the thread that goes on


@pytest.mark.parametrize("hang", ["re.match(r'(a+)+$', 'a' * 40 + 'b')", "9 ** 9 ** 9"])
def test_a_reward_that_holds_the_interpreter_ends_the_process_and_shows_where(tmp_path, hang):
    (tmp_path / "mine.py").write_text(FRAGILE.format(hang=hang))
    code = f"""
from grpo_math.data.prompts import TEMPLATES
from grpo_math.rewards import waiting
from grpo_math.rewards.reward import RewardSpec, build_rewards
waiting.GRACE = 0.3
(reward,) = build_rewards([RewardSpec(name="mine", path="{tmp_path}/mine.py:f", timeout=0.2)], TEMPLATES["boxed"])
reward(prompts=["p"], completions=["hang"], completion_ids=[[1]], log_metric=print)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout")
    assert 'mine.py", line' in done.stderr


def test_skipping_leaves_out_the_groups_it_fails_on_and_counts_them(tmp_path):
    logged = []
    reward = fragile(tmp_path, "time.sleep(60)", skip=True, timeout=0.2)
    scored = functools.partial(reward, log_metric=lambda *pair: logged.append(pair), **TWO_GROUPS)
    assert scored(completions=["a", "bb", "a", "bb"]) == [1.0, 0.5, 1.0, 0.5]
    assert scored(completions=["a", "", "a", "bb"]) == [None, None, 1.0, 0.5]
    assert scored(completions=["", "a", "", ""]) == [None] * 4
    assert scored(completions=["a", "hang", "a", "a"]) == [None] * 4  # late is late: it is not asked again
    shares = [value for name, value in logged if name == "rewards/mine/failed"]
    assert shares == [0.0, 0.5, 1.0, 1.0]
