"""The same recipe is the same optimisation on any number of processes; contradictions are told with the numbers."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.errors import UserError
from grpo_math.recipe.batch import batch_arguments, describe_batch

DEVICE, PASSES, GENERATIONS = "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"


@pytest.mark.parametrize(
    ("prompts", "processes", "given", "device", "passes"),
    [
        (8, 1, {}, 8, 8),
        (8, 2, {}, 8, 4),
        (8, 8, {}, 8, 1),
        (32, 8, {GENERATIONS: 4}, 8, 2),
        (3, 1, {GENERATIONS: 2}, 6, 1),
        (7, 1, {GENERATIONS: 3}, 7, 3),
        (8, 2, {DEVICE: 16}, 16, 2),
        (8, 2, {PASSES: 1}, 32, 1),
        (8, 2, {DEVICE: 4, PASSES: 8}, 4, 8),
        (1, 8, {}, 1, 1),  # a group may be spread over processes
    ],
)
def test_the_step_is_cut_over_processes_and_passes(prompts, processes, given, device, passes):
    assert batch_arguments(given, prompts, processes) == {DEVICE: device, PASSES: passes}


@given(prompts=st.integers(1, 64), generations=st.integers(2, 16), processes=st.integers(1, 16))
def test_a_step_has_the_same_completions_on_any_number_of_processes(prompts, generations, processes):
    try:
        cut = batch_arguments({GENERATIONS: generations}, prompts, processes)
    except UserError:
        assert prompts * generations % processes
    else:
        assert cut[DEVICE] * cut[PASSES] * processes == prompts * generations
        assert 1 <= cut[DEVICE] <= 8


@pytest.mark.parametrize(
    ("prompts", "processes", "given", "message"),
    [
        (3, 2, {GENERATIONS: 3}, "3 prompts x num_generations 3 = 9 completions cannot be divided evenly among 2 processes: give a multiple of 2 prompts"),
        (2, 8, {GENERATIONS: 6}, "cannot be divided evenly among 8 processes: give a multiple of 4 prompts"),
        (8, 2, {DEVICE: 3}, "per_device_train_batch_size: 3 does not divide the 32 completions of a process (8 prompts x num_generations 8 = 64 completions, 2 processes)"),
        (8, 1, {DEVICE: 8, PASSES: 4}, "64 completions, but per_device_train_batch_size 8 x gradient_accumulation_steps 4 x processes 1 = 32"),
        (8, 1, {PASSES: 128}, "gradient_accumulation_steps: 128 does not divide the 64 completions of a process"),
        (None, 1, {DEVICE: 4}, "num_generations: 8 does not divide the 4 completions of a step (per_device_train_batch_size 4 x"),
        (None, 3, {DEVICE: 4, GENERATIONS: 8}, "x processes 3): make it a divisor, or set prompts_per_step"),
    ],
)  # fmt: skip
def test_a_contradiction_is_told_with_the_numbers(prompts, processes, given, message):
    with pytest.raises(UserError) as caught:
        batch_arguments(given, prompts, processes)
    assert message in str(caught.value)


def test_without_prompts_per_step_trls_own_keys_stay():
    assert batch_arguments({DEVICE: 16, PASSES: 2}, None, 2) == {}


def settings(**changes):
    keys = {DEVICE: 8, PASSES: 4, GENERATIONS: 8, "steps_per_generation": 4, "num_iterations": 1}
    return SimpleNamespace(**keys | changes)


def test_the_table_counts_prompts_completions_and_steps():
    assert describe_batch(settings(), 2, 7_473).splitlines() == [
        "prompts per step                   8  x 8 completions each",
        "completions per step              64  = 2 processes x 4 passes x 8",
        "optimizer steps per generation     1  batch of 64 completions",
        "steps per epoch                  934  of 7,473 problems",
    ]


def test_off_policy_passes_make_more_steps_a_generation():
    table = describe_batch(settings(steps_per_generation=8, num_iterations=2), 2, 7_473)
    assert "optimizer steps per generation     4  batch of 128 completions" in table
    assert "steps per epoch                1,868" in table


def test_too_few_problems_for_one_generation_batch_are_an_error():
    with pytest.raises(UserError, match="dataset: 7 problems, but one generation batch takes 8"):
        describe_batch(settings(), 2, 7)


def test_an_optimizer_step_that_would_mix_two_generation_batches_is_an_error():
    with pytest.raises(UserError, match="steps_per_generation: 6 is not a multiple of gradient_accumulation_steps 4"):
        describe_batch(settings(steps_per_generation=6), 1, 100)
