"""Alarms: every cause by its name, once; and a real run that loses itself in NaN."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from grpo_math.data import TEMPLATES
from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import wilson_interval
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_rows, write_rows
from grpo_math.train import train
from grpo_math.trainer.alarms import Alarms
from grpo_math.trainer.callbacks import finite
from grpo_math.trainer.course import Course, most_zero_std

WELL = {
    "loss": 0.1, "grad_norm": 1.0, "reward": 0.5, "reward_std": 0.4, "frac_reward_zero_std": 0.2, "accuracy": 0.5,
    "grading/no_answer": 0.0, "grading/timeouts": 0.0, "grading/unparsable_gold": 0.0, "completions/clipped_ratio": 0.1,
    "completions/mean_length": 100.0, "entropy": 1.0, "kl": 0.01,
}  # fmt: skip
ALIKE = {"reward_std": 0.0, "frac_reward_zero_std": 1.0}
UNSCORED = {"reward_std": None, "reward": None}  # TRL's word for a log without one reward
CAUSES = [
    ({**ALIKE, "grading/no_answer": 0.95}, "reward", "all completions got the same reward for 3 logs: 95% have no answer in style boxed: add rewards: {format: {weight: 0.2}}, a worked example to the prompt, or SFT first"),
    ({**ALIKE, "completions/clipped_ratio": 1.0}, "reward", "all completions got the same reward for 3 logs: 100% are truncated: raise max_completion_length (8)"),
    ({**ALIKE, "grading/unparsable_gold": 1.0}, "reward", "all completions got the same reward for 3 logs: 100% of the golds cannot be parsed: see grpo-math check"),
    ({**UNSCORED, "grading/unparsable_gold": 1.0}, "reward", "all completions got the same reward for 3 logs: 100% of the golds cannot be parsed: see grpo-math check"),
    ({**ALIKE, "accuracy": 1.0}, "solved", "100% of the completions are right: stop the run, or use harder problems"),
    ({"frac_reward_zero_std": 0.95, "accuracy": 0.98}, "solved", "98% of the completions are right: stop the run, or use harder problems"),
    ({**ALIKE, "accuracy": 0.0}, "reward", "all completions got the same reward for 3 logs: 0% are right: use easier problems, dataset: {pass_rate: ...}, or SFT first"),
    (ALIKE, "reward", "all completions got the same reward for 3 logs: raise temperature or num_generations, or look at the rewards (grpo-math check)"),
    ({"frac_reward_zero_std": 0.75}, "zero_std", "in 75% of the groups all rewards are equal: raise temperature or num_generations, or look at the rewards (grpo-math check)"),
    ({"frac_reward_zero_std": 0.75, "completions/distinct": 0.2}, "zero_std", "in 75% of the groups all rewards are equal: of 8 completions 1.6 are distinct: raise temperature, or lower learning_rate"),
    ({"completions/clipped_ratio": 0.4}, "truncated", "40% of the completions are truncated: raise max_completion_length (8)"),
    ({"grading/timeouts": 0.02}, "timeouts", "2.0% of the answers took too long to grade: raise grading: {timeout: 5.0}"),
    ({"tools/call_frequency": 0.0, "tools/failure_frequency": 0.0}, "tools", "no completion calls a tool: ask for it in prompt_template, or run SFT on conversations first"),
    ({"tools/call_frequency": 0.2, "tools/failure_frequency": 0.75}, "tools", "75% of the tool calls fail: see why in the saved completions"),
    ({"kl": 1.5}, "kl", "KL 1.5 from the reference model, above 1: lower learning_rate, or raise beta"),
    ({"sampling/importance_sampling_ratio/mean": 0.7}, "importance", "vLLM's policy is not the trained one (ratio 0.70, expected 1): leave vLLM's dtype unset, or lower learning_rate and steps_per_generation"),
    ({"sampling/importance_sampling_ratio/mean": 0.4}, "importance", "vLLM's policy is not the trained one (ratio 0.40, expected 1): leave vLLM's dtype unset, or lower learning_rate and steps_per_generation"),
    ({"loss": math.nan}, "nan", "loss is nan: lower learning_rate or max_grad_norm, or set bf16: false"),
    ({"grad_norm": math.inf}, "nan", "grad_norm is inf: lower learning_rate or max_grad_norm, or set bf16: false"),
]  # fmt: skip


@pytest.fixture
def watch(write_recipe, tmp_path):
    """The alarms that these logs raise, step by step, as (step, name, text); and the callback."""

    def run(logs: list[dict], begin: int = 0, graded: tuple = (), **keys):
        recipe = load_recipe(["--config", str(write_recipe(**{"num_generations": 8, "prompts_per_step": 4, **keys}))])
        recipe.output_dir.mkdir(exist_ok=True)
        alarms = Alarms(Course(recipe.output_dir, recipe.alarms, recipe.template, recipe.baseline, graded))
        args = SimpleNamespace(**{"max_completion_length": 8, "num_generations": 8, **recipe.trainer})
        control = SimpleNamespace(should_training_stop=False, should_save=True)
        state = SimpleNamespace(global_step=begin, is_world_process_zero=True)
        alarms.on_train_begin(args, state, control)
        for log in logs:
            state.global_step += 1
            state.global_step -= "eval_accuracy" in log  # an evaluation is logged at the step before it
            alarms.on_log(args, state, control, logs=log)
        said = [(row["step"], row["alarm"], row["says"]) for row in read_rows(recipe.output_dir / "alarms.jsonl")]
        return said, alarms, control

    return run


def test_a_model_that_thinks_is_told_how_to_stop(tmp_path):
    course = Course(tmp_path, AlarmSpec(steps=1), TEMPLATES["boxed"], "group", (), switch=True)
    course.args = SimpleNamespace(max_completion_length=8, num_generations=8)
    found = course.look(1, WELL | {"completions/clipped_ratio": 0.4})
    assert found["truncated"].endswith(
        "raise max_completion_length (8), or set chat_template_kwargs: {enable_thinking: false}"
    )


@pytest.mark.parametrize(
    ("changes", "name", "says"), CAUSES, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(CAUSES)]
)
def test_every_cause_is_named_once(watch, changes, name, says):
    found, _, control = watch([WELL | changes] * 8, alarms={"steps": 3})
    assert found[0] == (1 if name == "nan" else 3, name, says)
    assert len(found) == 1 or found[1][1] == "truncated"  # which is also a cause of its own
    assert control.should_training_stop == (name == "nan")


@pytest.mark.parametrize(
    ("group", "limit"),  # by hand: 0.956^2 + 0.044^2 = 0.9159, 0.956^4 + 0.044^4 = 0.8353, 0.956^8 = 0.6977
    [(2, 0.9159), (4, 0.8353), (8, 0.7), (16, 0.7), (64, 0.7)],
)
def test_small_groups_are_expected_to_be_alike(watch, group, limit):
    assert most_zero_std(group) == pytest.approx(limit, abs=1e-4)
    below, above = ({"frac_reward_zero_std": limit + change} for change in (-0.01, 0.01))
    assert watch([WELL | below] * 4, num_generations=group, alarms={"steps": 3})[0] == []
    assert watch([WELL | above] * 4, num_generations=group, alarms={"steps": 3})[0][0][1] == "zero_std"


def test_two_completions_at_15_percent_accuracy_are_no_alarm(watch):
    alike = 0.15**2 + 0.85**2
    assert alike == pytest.approx(0.745)
    logs = [WELL | {"frac_reward_zero_std": alike, "accuracy": 0.15}] * 4
    assert watch(logs, num_generations=2, alarms={"steps": 3})[0] == []


def test_without_a_baseline_groups_of_equal_rewards_teach(watch):
    keys = {"baseline": "none", "scale_rewards": "none", "alarms": {"steps": 3}}
    assert watch([WELL | {"frac_reward_zero_std": 1.0}] * 4, **keys)[0] == []


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"top_p": 0.9, "top_k": 50}, "top_p: 0.9, top_k: 50"),
        ({"generation_kwargs": {"min_p": 0.1}}, "generation_kwargs.min_p: 0.1"),
        ({"top_p": 1.0, "top_k": 0}, None),
    ],
)
def test_truncated_sampling_is_the_first_cause_of_wrong_weights(watch, keys, cause):
    ratio = "sampling/importance_sampling_ratio/mean"
    ((_, name, says),) = watch([WELL | {ratio: 0.004}] * 3, alarms={"steps": 3}, **keys)[0]
    if cause:
        start = f"the mean importance weight of vLLM's completions is 0.004, expected 1: with {cause} vLLM's probabilities are"
    else:
        start = "vLLM's policy is not the trained one (ratio 0.00, expected 1): leave vLLM's dtype"
    assert (name, says[: len(start)]) == ("importance", start)


def test_spikes_of_the_gradient(watch):
    calm, high = WELL | {"grad_norm": 0.3}, WELL | {"grad_norm": 3.1}
    ((step, name, says),) = watch([calm] * 9 + [high, calm, high, calm, high])[0]
    assert (step, name) == (14, "spike")
    assert says.startswith(
        "the gradient norm was above 10 times its median (0.3) in 3 of 10 steps: lower learning_rate"
    )
    assert watch([calm] * 9 + [high, calm, high] + [calm] * 9)[0] == []
    silent = WELL | {
        "grad_norm": 1e-6,
        "frac_reward_zero_std": 1.0,
        "reward_std": 0.1,
    }  # without signal, beta's gradient
    assert "spike" not in {name for _, name, _ in watch([silent, silent, high] * 10)[0]}
    again = {"loss": 0.1, "grad_norm": 1e-6}  # a further step of the same generation logs nothing of its groups
    assert "spike" not in {name for _, name, _ in watch([silent, again, high] * 10)[0]}


def test_logs_without_a_value_are_left_out(watch):
    """TRL logs None for a metric without a value; without `nan` in stop_on a run goes on with NaN."""
    odd = dict.fromkeys([*WELL, "rewards/correctness/variance_share", "rewards/a/b/variance_share"], None)
    logs = [WELL | SHARES, odd | {"loss": 0.1}, WELL | {"grad_norm": math.nan, "reward": math.nan}] * 4
    evaluations = [{"eval_accuracy": value, "eval_accuracy_low": value - 0.1} for value in (0.9, 0.5, 0.5, 0.5)]
    found, _, _ = watch([*logs[:6], *evaluations, *logs], alarms={"steps": 3, "stop_on": []}, graded=("correctness",))
    assert [name for _, name, _ in found] == ["nan", "composition"]


SHARES = {"rewards/correctness/variance_share": 0.3, "rewards/format/variance_share": 0.7}


@pytest.mark.parametrize(
    ("changes", "graded", "raised"),
    [
        (SHARES, ("correctness",), True),
        ({name: 1 - share for name, share in SHARES.items()}, ("correctness",), False),
        (SHARES | {"accuracy": 0.02}, ("correctness",), False),  # a format is learned first
        (SHARES | {"accuracy": 0.95}, ("correctness",), False),
        (SHARES, (), False),  # a heuristic recipe: nothing knows the solution
        (SHARES, ("correctness", "format"), False),
    ],
)
def test_a_reward_that_is_decided_by_something_else_than_the_solution(watch, changes, graded, raised):
    found, _, _ = watch([WELL | changes] * 9, graded=graded, alarms={"steps": 3})
    says = (
        "format, which does not read the solution, is 0.70 of the reward variance within groups (all entries sum to 1): "
        "lower its weight, or set gate: correctness"
    )
    assert found == ([(9, "composition", says)] if raised else [])
    assert watch([WELL | changes] * 8, graded=graded, alarms={"steps": 3})[0] == []


def course(accuracies, rewards, steps=4) -> list[dict]:
    """Evaluations, and after each a few steps with about this reward."""
    logs = []
    for accuracy, reward in zip(accuracies, rewards, strict=True):
        logs.append({"eval_accuracy": accuracy, "eval_accuracy_low": accuracy - 0.05})
        logs += [WELL | {"reward": reward + 0.01 * (step % 2)} for step in range(steps)]
    return logs


@pytest.mark.parametrize(
    ("accuracies", "rewards", "at"),
    [
        ([0.3, 0.6, 0.5, 0.5, 0.45, 0.4], [0.3, 0.6, 0.65, 0.7, 0.75, 0.8], 16),
        ([0.6, 0.5, 0.4, 0.3], [0.3, 0.4, 0.5, 0.6], 12),  # from the first on
        ([0.3, 0.6, 0.5, 0.45, 0.4], [0.3, 0.6, 0.5, 0.5, 0.45], None),  # the reward falls too
        ([0.3, 0.6, 0.58, 0.57, 0.56, 0.57], [0.3, 0.6, 0.7, 0.8, 0.8, 0.9], None),  # within the interval
        ([0.3, 0.6, 0.5, 0.45], [0.3, 0.6, 0.7, 0.8], None),  # too few evaluations
        ([0.3, 0.6, 0.5, 0.7, 0.6], [0.3, 0.6, 0.7, 0.8, 0.9], None),
        ([0.3, 0.4, 0.5, 0.6, 0.7], [0.3, 0.4, 0.5, 0.6, 0.7], None),
    ],
)
def test_reward_that_rises_while_held_out_accuracy_falls(watch, tmp_path, accuracies, rewards, at):
    found, _, _ = watch(course(accuracies, rewards), alarms={"steps": 3})
    assert [(step, name) for step, name, _ in found] == ([(at, "diverged")] if at else [])
    best = tmp_path / "run" / "best"
    best.mkdir()
    if at == 16:
        assert found[0][2].endswith("the model of step 4 is not kept (eval: {best: true})")
        assert watch(course(accuracies, rewards), alarms={"steps": 3})[0][0][2].endswith(f"of step 4 is {best}")
        checkpoint = tmp_path / "run" / "checkpoint-4"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text('{"global_step": 4}')
        assert watch(course(accuracies, rewards), alarms={"steps": 3})[0][0][2].endswith(f"of step 4 is {checkpoint}")


def test_noise_alone_seldom_looks_like_a_divergence(watch):
    """50 runs that stay at 0.5: 20 evaluations of 200 new problems each, rewards of 128 completions a step."""
    draws, alarms = np.random.default_rng(0), 0
    course = watch([])[1].course
    for _ in range(50):
        course.held_out, course.rewards = [], []
        seen = False
        for evaluation in range(20):
            accuracy = draws.binomial(200, 0.5) / 200
            course.held_out.append((10 * evaluation, accuracy, wilson_interval(round(200 * accuracy), 200)[0]))
            course.rewards += [(10 * evaluation + step, draws.binomial(128, 0.5) / 128) for step in range(1, 11)]
            seen = seen or bool(dict(course.diverged()))
        alarms += seen
    assert alarms <= 2


def test_a_run_that_goes_well_is_silent(watch):
    assert watch([WELL] * 30, alarms={"steps": 3})[0] == []
    noise = [{"eval_accuracy": 0.0, "loss": math.nan}, {"train_runtime": 1.0, "loss": math.nan}]
    assert watch([WELL, *noise] * 10)[0] == []


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        (
            {"entropy": 0.05, "frac_reward_zero_std": 0.6},
            "entropy",
            "fell from 1 to 0.05, and most groups have equal rewards: raise epsilon_high (0.28) or temperature, or set entropy_coef: 0.001; then lower learning_rate",
        ),
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
    said = "all completions got the same reward for 3 logs: accuracy fell from 0.50 to 0.00, the policy collapsed: lower learning_rate"
    assert (6, "reward", said) in found


@pytest.mark.parametrize(
    "end",
    [
        {"entropy": 0.02, "accuracy": 0.95, "frac_reward_zero_std": 0.6},  # of the quickstart, and nearly all is right
        {"entropy": 0.02, "accuracy": 0.6, "frac_reward_zero_std": 0.3},  # low, and groups still differ
    ],
)
def test_a_healthy_convergence_is_silent(watch, end):
    middle = {name: (WELL[name] + value) / 2 for name, value in end.items()}
    assert watch([WELL] * 10 + [WELL | middle] * 10 + [WELL | end] * 20)[0] == []


def test_other_alarms_stop_where_they_are_asked_to(watch):
    _, alarms, control = watch([WELL | ALIKE] * 5, alarms={"steps": 3, "stop_on": ["reward"]})
    assert control.should_training_stop
    with pytest.raises(UserError, match=r"alarm reward: all completions got the same reward .*there is no checkpoint"):
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


def test_a_resumed_run_remembers_its_evaluations(watch, tmp_path):
    logs = course([0.6, 0.5, 0.4, 0.3], [0.3, 0.4, 0.5, 0.6])
    whole, _, _ = watch(logs, alarms={"steps": 3})
    rows, step = [], 0
    for log in logs:
        step += "loss" in log
        rows.append({"step": step, **{name.replace("eval_", "eval/"): value for name, value in log.items()}})
    write_rows(rows, tmp_path / "run" / "metrics.jsonl")
    for begin in (4, 8):
        later = [log for row, log in zip(rows, logs, strict=True) if (row["step"], "loss" in row) > (begin, True)]
        assert watch(later, begin=begin, alarms={"steps": 3})[0] == whole


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
