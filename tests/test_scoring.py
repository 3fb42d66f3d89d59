"""A recipe's rewards on the completions of an evaluation."""

import json
from dataclasses import replace

import pytest
from transformers import TrainerState

from grpo_math.data import Problem
from grpo_math.errors import RewardError
from grpo_math.evaluation import Benchmark, Scoring, grade_rows, metrics_of, summarise_each
from grpo_math.evaluation.scoring import score_together
from grpo_math.evaluation.solve import rows_of
from grpo_math.evaluation.statistics import share
from grpo_math.evaluation.tables import print_tables
from grpo_math.generation import Completion
from grpo_math.recipe.recipe import load_recipe

OWN = """
def half(completions, **_):
    return [None if "?" in str(one) else 1.0 for one in completions]

def size(completions, **_):
    return [float(len(completions))] * len(completions)

def tokens(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]

def level(completions, level, **_):
    return [float(one or 0) for one in level]

def step(completions, trainer_state, **_):
    return [float(trainer_state.global_step)] * len(completions)

def careless(completions, **columns):
    return [float(one) for one in columns["level"]]

def group(prompts, completions, worked, question, **_):
    return [float(len(set(map(str, completions[place // 2 * 2 :][:2])))) for place in range(len(completions))]
"""
RIGHT, WRONG = r"\boxed{3}", r"\boxed{4}"
PROBLEMS = [Problem("first?", "3", meta={"level": 2}), Problem("second?", ""), Problem("third?", "3")]
TITLE = "d"


@pytest.fixture
def made(write_recipe, tmp_path, tokenizer):
    """A Scoring of these rewards, in which `own` means the functions above; and graded rows of texts, two a problem."""
    (tmp_path / "own.py").write_text(OWN)

    def made(own: dict, rewards: dict | None = None, benchmarks=None, in_training: bool = True, **keys) -> Scoring:
        entries = (rewards or {}) | {name: {"path": f"{tmp_path}/own.py:{name}"} | one for name, one in own.items()}
        keys = {"eval": {"samples": 2, "temperature": 1.0, "batch_size": 5}} | keys
        recipe = load_recipe(["--config", str(write_recipe(rewards=entries, **keys))])
        return Scoring(recipe, benchmarks or [Benchmark(TITLE, PROBLEMS)], tokenizer, in_training)

    return made


def rows_for(scoring: Scoring, texts: list[str], title: str = TITLE, lengths=None) -> list[dict]:
    benchmark, found = Benchmark(title, scoring.problems[title]), []
    lengths = lengths or [10] * len(texts)
    for place in range(0, len(texts), 2):
        pair = [Completion(texts[place + turn], lengths[place + turn], False) for turn in (0, 1)]
        found += rows_of(benchmark, place // 2, pair)
    return grade_rows(found, scoring.template)


def test_rewards_have_figures_over_what_they_could_score(made):
    scoring = made({"half": {"weight": -0.5}}, {"correctness": {}})
    texts = [RIGHT, "?", r"\boxed{?}", RIGHT, WRONG, WRONG]  # the second gold cannot be read
    rows = scoring(rows_for(scoring, texts))
    assert [row["rewards/correctness"] for row in rows] == [1, 0, None, None, 0, 0]
    assert [row["rewards/half"] for row in rows] == [1, None, None, 1, 1, 1]
    assert [row["reward"] for row in rows] == [0.5, 0, None, -0.5, -0.5, -0.5]
    (found,) = summarise_each(rows, {TITLE: 1.0})
    assert found.figures["rewards/correctness"].value == pytest.approx((0.5 + 0) / 2)  # of two questions
    assert found.figures["rewards/half"].value == 1
    assert found.figures["reward"].value == pytest.approx((0.25 - 0.5 - 0.5) / 3)
    assert found.figures["reward"].low <= found.figures["reward"].value <= found.figures["reward"].high
    # 0 and 1 alone are a share: three questions of 1, not above 1. Other rewards are amounts.
    assert (found.figures["rewards/half"].low, found.figures["rewards/half"].high) == (share([1, 1, 1]).low, 1)
    assert found.figures["reward"].low < -0.5
    metrics, flat = metrics_of([found]), found.flat()
    for name in ("reward", "reward_low", "reward_high", "rewards/half", "rewards/correctness_high"):
        assert metrics[name] == flat[name]
    assert f"reward {found.figures['reward'].value:.3f}, " in str(found)


def test_what_the_evaluation_has_graded_is_not_graded_again(made):
    scoring = made({}, {"correctness": {}})
    rows = rows_for(scoring, [RIGHT, RIGHT])
    known = [row | {"correct": False} for row in rows]
    assert [row["rewards/correctness"] for row in scoring(rows) + scoring(known)] == [1, 1, 0, 0]


def test_the_rewards_change_no_other_figure(made):
    scoring = made({"half": {}}, {"correctness": {}})
    rows = rows_for(scoring, [RIGHT, "?", RIGHT, RIGHT, WRONG, RIGHT])
    ((plain,), (scored,)) = (summarise_each(some, {TITLE: 1.0}) for some in (rows, scoring(rows)))
    assert {name: figure for name, figure in scored.figures.items() if name in plain.figures} == plain.figures
    assert scored.figures.keys() - plain.figures.keys() == {"reward", "rewards/correctness", "rewards/half"}
    (unscorable,) = summarise_each(scoring(rows_for(scoring, ["?", "?"])), {TITLE: 1.0})
    assert "rewards/half" not in unscorable.figures
    assert unscorable.figures["reward"].value == 0


def test_a_call_has_whole_problems_and_at_most_a_batch(made):
    scoring = made({"size": {}, "group": {"weight": 0.0}})
    rows = rows_for(scoring, [RIGHT, RIGHT, RIGHT, WRONG, "?", "??"])
    scored = scoring(rows[::-1])  # in any order
    assert [(row["problem"], row["sample"]) for row in scored] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row["rewards/size"] for row in scored] == [4, 4, 4, 4, 2, 2]
    assert [row["rewards/group"] for row in scored] == [1, 1, 2, 2, 2, 2]
    assert [row["reward"] for row in scored] == [4, 4, 4, 4, 2, 2]


def test_lengths_are_those_that_were_generated(made, tokenizer):
    """Not those of the text's own tokens: a penalty on length depends on them."""
    scoring = made({"tokens": {}}, {"overlong": {"cache_tokens": 4}}, max_completion_length=8)
    own = len(tokenizer(RIGHT, add_special_tokens=False)["input_ids"])
    assert own > 2
    rows = scoring(rows_for(scoring, [RIGHT] * 4, lengths=[own + 1, 2, 6, 30]))
    assert [row["rewards/tokens"] for row in rows] == [own + 1, 2, 6, 30]
    assert [row["rewards/overlong"] for row in rows][1:] == [0, -0.5, -1]


@pytest.mark.parametrize(
    ("own", "rewards", "in_training", "left_out", "scored"),
    [
        ({"half": {}}, {}, False, [], {"reward", "rewards/half"}),
        ({"level": {}, "half": {}}, {}, True, ["rewards.level needs level"], {"rewards/half"}),
        ({"level": {"level": [1, 1]}, "half": {}}, {}, True, [], {"reward", "rewards/level", "rewards/half"}),
        ({"level": {}}, {"format": {"gate": "level"}}, True, ["rewards.format needs level", "rewards.level needs level"], set()),
        ({"step": {}}, {}, True, [], {"reward", "rewards/step"}),
        ({"step": {}, "half": {}}, {}, False, ["rewards.step needs trainer_state"], {"rewards/half"}),
        ({"half": {}}, {"judge": {"reward_model": "org/model"}}, True, ["rewards.judge is a reward model"], {"rewards/half"}),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_be_scored_is_named_and_left_out(made, own, rewards, in_training, left_out, scored):
    scoring = made(own, rewards, [Benchmark(TITLE, [replace(one, meta={}) for one in PROBLEMS])], in_training)
    assert [line.rpartition(": ")[2] for line in scoring.left_out()] == left_out
    assert all(line.startswith(f"evaluation on {TITLE}: rewards/") for line in scoring.left_out())
    (row, _) = scoring(rows_for(scoring, [RIGHT, WRONG]), TrainerState(global_step=7))
    assert {name for name in row if name.startswith("reward")} == scored
    assert row.get("rewards/step", 7) == 7


def test_of_several_datasets_each_has_the_rewards_that_its_columns_allow(made, capsys):
    bare = [replace(one, meta={}) for one in PROBLEMS]
    scoring = made({"level": {}, "half": {}}, benchmarks=[Benchmark("with", PROBLEMS), Benchmark("without", bare)])
    assert len(scoring.left_out()) == 1
    rows = scoring([row for title in ("with", "without") for row in rows_for(scoring, [RIGHT] * 6, title)])
    found = summarise_each(rows, {"with": 1.0, "without": 1.0})
    assert [one.figures.keys() >= {"reward", "rewards/level"} for one in found] == [True, False, False]
    assert [one.figures["rewards/half"].value for one in found] == [1, 1, 1]
    assert found[0].figures["rewards/level"].value == pytest.approx(2 / 3)  # a problem without a level: None
    print_tables(found, None)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rewards/level")]
    assert line.split()[-2:] == ["-", "-"]


@pytest.mark.parametrize("eval_", [{"rewards": False}, {"rewards": True}])
def test_an_earlier_evaluations_rewards_are_forgotten(made, eval_):
    scoring = made({"half": {}}, eval=eval_)
    rows = [row | {"reward": 9.0, "rewards/old": 9.0} for row in rows_for(scoring, [RIGHT, WRONG])]
    wanted = {"reward", "rewards/half"} if eval_["rewards"] else set()
    assert {name for row in scoring(rows) for name in row if name.startswith("reward")} == wanted


def test_a_reward_that_fails_stops_or_has_no_score(made):
    texts, keys = [RIGHT] * 6, {"eval": {"samples": 2, "temperature": 1.0}}
    stops = made({"careless": {}, "half": {}}, **keys)
    with pytest.raises(RewardError, match=r"^reward careless: raised TypeError: .*own.py:"):
        stops(rows_for(stops, texts))
    skips = made({"careless": {}, "half": {}}, on_reward_error="skip", **keys)
    rows = skips(rows_for(skips, texts))
    assert [row["rewards/careless"] for row in rows] == [2, 2, None, None, None, None]
    assert [row["reward"] for row in rows] == [3, 3, 1, 1, 1, 1]


def test_one_process_scores_alone_what_several_would_together(made):
    scoring = made({"size": {}, "half": {}})
    rows = rows_for(scoring, [RIGHT, "?", RIGHT, WRONG, "?", "??"])
    assert json.dumps(score_together(scoring, rows, TrainerState())) == json.dumps(scoring(rows))
