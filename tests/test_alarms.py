"""Alarms: every cause by its name, once; and a real run that loses itself in NaN."""

import json
import math
from types import SimpleNamespace

import pytest

from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_rows, write_rows
from grpo_math.train import train
from grpo_math.trainer.alarms import Alarms
from grpo_math.trainer.callbacks import finite

WELL = {
    "loss": 0.1, "grad_norm": 1.0, "reward": 0.5, "reward_std": 0.4, "frac_reward_zero_std": 0.2, "accuracy": 0.5,
    "grading/no_answer": 0.0, "grading/timeouts": 0.0, "grading/unparsable_gold": 0.0, "completions/clipped_ratio": 0.1,
    "completions/mean_length": 100.0, "entropy": 1.0, "kl": 0.01,
}  # fmt: skip
ALIKE = {"reward_std": 0.0, "frac_reward_zero_std": 1.0}
UNSCORED = {"reward_std": None, "reward": None}  # TRL's word for a log without one reward
CAUSES = [
    ({**ALIKE, "grading/no_answer": 0.95}, "reward", "every completion earns the same, 3 logs long: 95% give no answer in style boxed: add rewards: {format: {weight: 0.2}}, a worked example to the prompt, or SFT first"),
    ({**ALIKE, "completions/clipped_ratio": 1.0}, "reward", "every completion earns the same, 3 logs long: 100% are cut off: raise max_completion_length (8)"),
    ({**ALIKE, "grading/unparsable_gold": 1.0}, "reward", "every completion earns the same, 3 logs long: 100% of the golds cannot be read: see grpo-math check"),
    ({**UNSCORED, "grading/unparsable_gold": 1.0}, "reward", "every completion earns the same, 3 logs long: 100% of the golds cannot be read: see grpo-math check"),
    ({**ALIKE, "accuracy": 1.0}, "reward", "every completion earns the same, 3 logs long: 100% are right already: take harder problems, or dataset: {pass_rate: ...}"),
    ({**ALIKE, "accuracy": 0.0}, "reward", "every completion earns the same, 3 logs long: 0% are right: take easier problems, dataset: {pass_rate: ...}, or SFT first"),
    (ALIKE, "reward", "every completion earns the same, 3 logs long: raise temperature or num_generations, or look at the rewards (grpo-math check)"),
    ({"frac_reward_zero_std": 0.75}, "zero_std", "in 75% of the groups all completions earn the same: raise temperature or num_generations, or look at the rewards (grpo-math check)"),
    ({"completions/clipped_ratio": 0.4}, "truncated", "40% of the completions are cut off: raise max_completion_length (8)"),
    ({"grading/timeouts": 0.02}, "timeouts", "2.0% of the answers took too long to grade: raise grading: {timeout: 5.0}"),
    ({"kl": 1.5}, "kl", "1.5 from the reference, above 1: lower learning_rate, or raise beta"),
    ({"sampling/importance_sampling_ratio/mean": 0.7}, "importance", "vLLM samples another policy than is trained (ratio 0.70): leave its dtype to the trainer's, or lower learning_rate and steps_per_generation"),
    ({"sampling/importance_sampling_ratio/mean": 0.4}, "importance", "vLLM samples another policy than is trained (ratio 0.40): leave its dtype to the trainer's, or lower learning_rate and steps_per_generation"),
    ({"loss": math.nan}, "nan", "loss is nan: lower learning_rate or max_grad_norm, or set bf16: false"),
    ({"grad_norm": math.inf}, "nan", "grad_norm is inf: lower learning_rate or max_grad_norm, or set bf16: false"),
]  # fmt: skip


@pytest.fixture
def watch(write_recipe, tmp_path):
    """The alarms that these logs raise, step by step, as (step, name, text); and the callback."""

    def run(logs: list[dict], begin: int = 0, **keys):
        recipe = load_recipe(["--config", str(write_recipe(**keys))])
        recipe.output_dir.mkdir(exist_ok=True)
        alarms = Alarms(recipe.output_dir, recipe.alarms, recipe.template, recipe.max_completion_length)
        control = SimpleNamespace(should_training_stop=False, should_save=True)
        state = SimpleNamespace(global_step=begin, is_world_process_zero=True)
        alarms.on_train_begin(None, state, control)
        for log in logs:
            state.global_step += 1
            alarms.on_log(None, state, control, logs=log)
        said = [(row["step"], row["alarm"], row["says"]) for row in read_rows(recipe.output_dir / "alarms.jsonl")]
        return said, alarms, control

    return run


@pytest.mark.parametrize(
    ("changes", "name", "says"), CAUSES, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(CAUSES)]
)
def test_every_cause_is_named_once(watch, changes, name, says):
    found, _, control = watch([WELL | changes] * 8, alarms={"steps": 3})
    assert found[0] == (1 if name == "nan" else 3, name, says)
    assert len(found) == 1 or found[1][1] == "truncated"  # which is also a cause of its own
    assert control.should_training_stop == (name == "nan")


def test_a_run_that_goes_well_is_silent(watch):
    assert watch([WELL] * 30, alarms={"steps": 3})[0] == []
    noise = [{"eval_accuracy": 0.0, "loss": math.nan}, {"train_runtime": 1.0, "loss": math.nan}]
    assert watch([WELL, *noise] * 10)[0] == []


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({"entropy": 0.05}, "entropy", "fell from 1 to 0.0"),
        ({"completions/mean_length": 400.0}, "length", "completions went from 100 to "),
        ({"completions/mean_length": 10.0}, "length", "completions went from 100 to "),
    ],
)
def test_what_drifts_from_its_beginning_is_named(watch, changes, name, says):
    found, _, _ = watch([WELL] * 5 + [WELL | changes] * 5, alarms={"steps": 3})
    assert [(alarm, text.startswith(says)) for _, alarm, text in found] == [(name, True)]


def test_a_policy_that_broke_is_not_told_to_learn_the_format(watch):
    found, _, _ = watch(
        [WELL] * 3 + [WELL | ALIKE | {"accuracy": 0.0, "grading/no_answer": 1.0}] * 3, alarms={"steps": 3}
    )
    said = "every completion earns the same, 3 logs long: accuracy fell from 0.50 to 0.00, the policy broke: lower learning_rate"
    assert (6, "reward", said) in found


def test_stop_strings_look_cut_off_to_trl_and_are_not_counted(watch):
    changes = {"completions/clipped_ratio": 1.0}
    found, _, _ = watch([WELL | changes] * 5, prompt_template="r1_zero", alarms={"steps": 3})
    assert found == []


def test_other_alarms_stop_where_they_are_asked_to(watch):
    _, alarms, control = watch([WELL | ALIKE] * 5, alarms={"steps": 3, "stop_on": ["reward"]})
    assert control.should_training_stop
    with pytest.raises(UserError, match=r"alarm reward: every completion earns the same, .*there is no checkpoint"):
        alarms.check()
    _, alarms, control = watch([WELL | {"loss": math.nan}], alarms={"stop_on": []})
    assert not control.should_training_stop
    alarms.check()


def test_a_resumed_run_stops_for_what_was_said_before_and_knows_the_checkpoint_it_began_from(watch, tmp_path):
    watch([WELL | ALIKE] * 5, alarms={"steps": 3})
    _, _, control = watch([WELL | ALIKE] * 3, begin=5, alarms={"steps": 3, "stop_on": ["reward"]})
    assert control.should_training_stop
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
    _, alarms, control = watch([WELL | {"loss": math.nan}], begin=5)
    with pytest.raises(UserError, match=r"the last good checkpoint is .*/checkpoint-5\)"):
        alarms.check()
    control.should_save = True
    alarms.on_epoch_end(None, None, control)
    assert not control.should_save


def test_a_resumed_run_forgets_what_was_said_after_its_checkpoint(watch):
    watch([WELL] * 4 + [WELL | {"kl": 2.0}] * 4, alarms={"steps": 3})
    again, _, _ = watch([WELL | {"kl": 2.0}] * 4, begin=8, alarms={"steps": 3})
    assert [step for step, _, _ in again] == [6]
    anew, _, _ = watch([WELL | {"kl": 2.0}] * 4, begin=2, alarms={"steps": 3})
    assert [step for step, _, _ in anew] == [5]


@pytest.mark.parametrize(
    "logs",
    [
        [WELL] * 4 + [WELL | {"completions/mean_length": 350.0}] * 4,
        [WELL] * 3 + [WELL | {"kl": 4.0}] + [WELL | {"kl": 0.0}] * 4,
        [WELL] * 4 + [WELL | UNSCORED] * 3 + [WELL],
        [WELL | UNSCORED, *[WELL] * 4, WELL | UNSCORED, *[WELL | {"kl": 2.0}] * 3],
        [WELL] * 2 + [WELL | {"loss": math.nan, "entropy": 9.0}] + [WELL] * 3 + [WELL | {"entropy": 0.3}] * 4,
        [WELL | {"accuracy": 0.9}] * 4 + [WELL | ALIKE | {"accuracy": 0.0}] * 4,
    ],
    ids=["length", "kl", "unscored", "some unscored", "nan", "reward"],
)
def test_a_run_resumed_anywhere_says_what_a_run_that_never_stopped_says(watch, tmp_path, logs):
    whole, _, _ = watch(logs, alarms={"steps": 3})
    assert len(whole) > 0
    rows = [{"step": step, **{name: finite(value) for name, value in log.items()}} for step, log in enumerate(logs, 1)]
    write_rows(rows, tmp_path / "run" / "metrics.jsonl")
    for begin in range(len(logs)):
        assert watch(logs[begin:], begin=begin, alarms={"steps": 3})[0] == whole


SUDDEN = """
calls = 0

def sudden(completions, **_):
    global calls
    calls += 1
    return [(3e38 if calls > 3 else 1.0) * i for i, _ in enumerate(completions)]
"""


def test_a_training_that_is_lost_stops_and_names_its_last_good_checkpoint(write_recipe, tmp_path):
    (tmp_path / "sudden.py").write_text(SUDDEN)
    rewards = {"sudden": {"path": f"{tmp_path}/sudden.py:sudden"}}
    keys = {"rewards": rewards, "max_steps": 8, "save_steps": 1, "scale_rewards": "none", "use_vllm": False}
    recipe = load_recipe(["--config", str(write_recipe(**keys)), "--preflight", "false"])
    with pytest.raises(UserError, match=r"alarm nan: .* is (nan|inf).*\(the last good checkpoint is .*/checkpoint-3\)"):
        train(recipe)
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "alarms.jsonl").open()]
    assert [(row["step"], row["alarm"]) for row in rows] == [(4, "nan")]


def test_a_policy_that_is_lost_between_two_logs_is_one_line_too(write_recipe, tmp_path):
    (tmp_path / "sudden.py").write_text(SUDDEN)
    rewards = {"sudden": {"path": f"{tmp_path}/sudden.py:sudden"}}
    keys = {"rewards": rewards, "max_steps": 8, "save_steps": 3, "scale_rewards": "none", "logging_steps": 100}
    recipe = load_recipe(["--config", str(write_recipe(**keys)), "--preflight", "false"])
    lost = r"^alarm nan: the logits of the policy are not finite: .*\(the last good checkpoint is .*/checkpoint-3\)$"
    with pytest.raises(UserError, match=lost):
        train(recipe)
