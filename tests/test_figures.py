"""Intervals and tests against published values, and against what they promise."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.evaluation.statistics import (
    bootstrap,
    difference,
    mcnemar,
    mean,
    means,
    paired_difference,
    pass_at_k,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (10, 10, 0.722, 1.0), (1121, 1319, 0.829, 0.868)],
)  # the first three are in Newcombe 1998, Statistics in Medicine 17:857-872, by the same formula
def test_wilsons_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167)],
)
# Newcombe 1998, Statistics in Medicine 17:2635-2650, table II, method 10
def test_newcombes_paired_interval(table, low, high):
    both, won, lost, neither = table
    figure = paired_difference(both, won, lost, both + won + lost + neither)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_a_paired_interval_holds_its_value_and_turns_with_it(both, won, lost, neither):
    count = both + won + lost + neither
    there, back = paired_difference(both, won, lost, count), paired_difference(both, lost, won, count)
    assert -1 - 1e-9 <= there.low <= there.value <= there.high <= 1 + 1e-9
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(0, 0, 1.0), (1, 0, 1.0), (6, 0, 0.03125), (0, 5, 0.0625), (10, 2, 0.03857), (7, 7, 1.0)]
)
def test_mcnemars_exact_test(won, lost, p):
    assert mcnemar(won, lost) == pytest.approx(p, abs=1e-5)
    assert mcnemar(lost, won) == mcnemar(won, lost)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    samples, right, k = case
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_bootstraps_interval_covers_as_often_as_it_says():
    rng, hits = random.Random(0), 0
    for trial in range(100):
        figure = mean([rng.choice([0, 0.25, 0.5, 1]) for _ in range(100)], seed=trial)
        hits += figure.low <= 0.4375 <= figure.high
    assert 88 <= hits <= 100


def test_the_bootstrap_is_seeded_and_its_columns_are_independent_of_each_other():
    values = [n / 7 for n in range(8)]
    assert mean(values, 3) == mean(values, 3) == means({"other": list(range(8)), "this": values}, 3)["this"]
    assert mean(values, 3) != mean(values, 4)


def test_what_is_right_or_wrong_on_every_question_has_wilsons_interval():
    found = means({"none": [0] * 8, "all": [1.0] * 8, "some": [0, 1] * 4, "means": [0, 0.5] * 4})
    for name, right in (("none", 0), ("all", 8), ("some", 4)):
        assert (found[name].low, found[name].high) == wilson_interval(right, 8)
    assert found["means"] == bootstrap({"means": [0, 0.5] * 4})["means"]


def test_a_difference_says_whether_it_can_be_told_from_none():
    even = difference([1, 0, 1, 0], [0, 1, 1, 0], paired_samples=False)
    assert (even.won, even.lost, even.p, even.distinguishable) == (1, 1, 1.0, False)
    clear = difference([0] * 10, [1] * 8 + [0] * 2, paired_samples=False)
    assert (clear.won, clear.p, clear.distinguishable) == (8, 0.0078125, True)
    sampled = difference([0.25, 0.5] * 10, [0.5, 0.75] * 10, paired_samples=True)
    assert (sampled.figure.value, sampled.p) == (0.25, None)
    assert not sampled.distinguishable  # twenty equal changes: the bootstrap's interval is empty and says nothing
    assert difference([0.25, 0.5] * 10, [0.5, 1.0] * 10, paired_samples=True).distinguishable
    assert not difference([0, 0, 0.5], [0, 0, 1], paired_samples=True).distinguishable
