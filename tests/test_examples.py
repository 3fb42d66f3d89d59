"""The examples with problems, a reward and a dataset function of one's own, each trained on the CPU."""

import json

import pytest
from conftest import ROOT

from grpo_math.data.functions import load_function
from grpo_math.data.loading import load_problems
from grpo_math.data.problem import DatasetSpec
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train

EXAMPLES = ROOT / "examples" / "own"
SMALL = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8}


@pytest.mark.parametrize("name", ["own_data", "own_reward", "own_function"])
def test_the_example_trains(name, policy_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the folder of the command in its header
    keys = {"output_dir": tmp_path / "run", "model_name_or_path": policy_folder, "eval.max_samples": 4, **SMALL}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    results = train(load_recipe(["--config", str(EXAMPLES / f"{name}.yaml"), *words]))
    assert results["before"].keys() == results["after"].keys()
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("rewards/working/mean" in step for step in steps) == (name == "own_reward")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("3+4=7\n7*2=14\n\\boxed{14}", 1.0),
        ("3+4=7\n\\boxed{14}", 0.5),
        ("3+4=7\n7*2=15", 0.25),  # one of two, less the penalty
        ("3+4=7\n3+4=7\n3+4=7", 1.0),
        ("3+4=8", -0.25),
        ("\\boxed{14}", 0.0),
    ],
)
def test_the_reward_counts_right_and_wrong_equations(text, score):
    working = load_function(f"{EXAMPLES / 'rewards.py'}:working")
    assert working([text], [2], penalty=0.25) == [score]
    assert working([[{"role": "assistant", "content": text}]], [2], penalty=0.25, question=["?"]) == [score]


def test_no_held_out_problem_is_trained_on():
    fields = {"question": "text", "answer": "result", "worked": "steps"}
    for sets in (
        [
            DatasetSpec(name="json", path=str(EXAMPLES / f"{part}.jsonl"), params={"fields": fields})
            for part in ("problems", "held_out")
        ],
        [DatasetSpec(path=f"{EXAMPLES / 'load.py'}:load", split=split) for split in ("train", "test")],
    ):
        train_set, test_set = (load_problems(spec).problems for spec in sets)
        assert train_set
        assert test_set
        assert not {one.question for one in train_set} & {one.question for one in test_set}
        for one in [*train_set, *test_set]:
            assert int(one.answer) >= 0
