"""Intervals and tests against published values, and against what they promise."""

import itertools
import math
import random
import re

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, nct, t, ttest_ind, ttest_rel

from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import (
    amount,
    detectable,
    difference,
    over_seeds,
    paired_difference,
    pass_at_k,
    power,
    problems_show,
    share,
    sign_flip,
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
    changes = np.array([1] * won + [-1] * lost + [0] * 3)
    assert sign_flip(changes) == pytest.approx(p, abs=1e-5)
    assert sign_flip(-changes) == sign_flip(changes)


@settings(deadline=None)
@given(st.integers(0, 600), st.integers(0, 600))
def test_the_sign_flip_test_of_single_answers_is_mcnemars(won, lost):
    wanted = binomtest(won, won + lost).pvalue if won + lost else 1
    assert sign_flip(np.array([1] * won + [-1] * lost)) == pytest.approx(wanted)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), max_size=8))
def test_the_sign_flip_test_counts_every_way_to_choose_the_signs(changes):
    sums = [sum(signed) for signed in itertools.product(*((change, -change) for change in changes))]
    wanted = sum(abs(one) >= abs(sum(changes)) for one in sums) / len(sums)
    assert sign_flip(np.array(changes, dtype=int)) == pytest.approx(wanted)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    samples, right, k = case
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def covered(draw, mean: float, trials: int, interval=share) -> float:
    figures = [interval(draw()) for _ in range(trials)]
    return sum(figure.low <= mean <= figure.high for figure in figures) / trials


@pytest.mark.parametrize("problems", [2, 3, 5, 10, 50])
@pytest.mark.parametrize("samples", [4, 16])
@pytest.mark.parametrize("mean", [0.01, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("alike", [True, False])
def test_a_mean_of_samples_has_an_interval_that_covers_also_with_few_problems(problems, samples, mean, alike):
    """Problems that are equally hard, and problems that differ (beta with a standard deviation of 0.4 for 0.5)."""
    rng = np.random.default_rng(0)

    def draw() -> list[float]:
        chances = mean if alike else rng.beta(mean * 0.6, (1 - mean) * 0.6, problems)
        return (rng.binomial(samples, chances, problems) / samples).tolist()

    assert covered(draw, mean, 400) > 0.9  # 0.95 less three standard errors is 0.917; skewed rare successes less


@pytest.mark.parametrize("problems", [1, 2, 5, 20, 200])
def test_a_mean_length_covers_also_with_few_problems(problems):
    rng = np.random.default_rng(0)
    assert covered(lambda: rng.gamma(2, 100, problems).tolist(), 200, 400, amount) > 0.917


def test_a_few_equal_values_are_not_certain():
    # three problems of 1/4: with a 0 and a 1 more the mean is 0.35 and the mean square 1.1875 / 5 = 0.2375, so the
    # effective number of problems is 3 x (0.35 - 0.1225) / (0.2375 - 0.1225) = 5.93, 1.48 of them right
    figure = share([0.25] * 3)
    assert (figure.low, figure.high) == pytest.approx(wilson_interval(1.4837, 5.9348), abs=1e-4)
    assert (figure.low, figure.high) == pytest.approx((0.060, 0.637), abs=1e-3)
    assert share([0.25]).high - share([0.25]).low > 0.7
    # lengths of 10 and 20, and 0 and 30 more: a standard deviation of sqrt(500 / 3); t with 3 degrees of freedom 3.182
    figure = amount([10, 20])
    assert (figure.value, figure.low) == (15, 0)
    assert figure.high == pytest.approx(15 + 3.182 * (500 / 3 / 2) ** 0.5, abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_is_never_narrower_than_of_more_questions(values):
    figure, more = share(values), share(values * 2)
    assert -1e-9 <= figure.low - 1e-9 <= figure.value <= figure.high + 1e-9 <= 1 + 1e-8
    assert more.high - more.low < figure.high - figure.low


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_what_is_right_or_wrong_on_every_question_has_wilsons_interval(values):
    figure = share(values)
    assert (figure.low, figure.high) == wilson_interval(sum(values), len(values))


def test_a_difference_says_whether_it_can_be_told_from_none():
    few = difference([1, 0, 1, 0], [0, 1, 1, 0])
    assert (few.won, few.lost, few.p, few.distinguishable) == (1, 1, 1.0, False)
    assert few.verdict == "too few problems to tell"
    clear = difference([0] * 10, [1] * 8 + [0] * 2)
    assert (clear.won, clear.p, clear.distinguishable) == (8, 0.0078125, True)
    assert str(clear).endswith(", McNemar's exact p 0.0078")
    sampled = difference([0.25, 0.5] * 10, [0.5, 0.75] * 10, 4)
    assert (sampled.figure.value, sampled.p) == (0.25, pytest.approx(2 / 2**20))
    assert sampled.verdict == "better"
    # equal changes are not certain: sqrt((0.25^2 + 0.25^2) x ...) of twenty 0.25, one 0.25 and one -0.25
    spread = np.std([0.25] * 21 + [-0.25], ddof=1)
    assert sampled.figure.high == pytest.approx(0.25 + t.ppf(0.975, 21) * spread / 20**0.5)
    assert difference([0.5, 0.75] * 10, [0.25, 0.5] * 10, 4).verdict == "worse"


@pytest.mark.parametrize(
    ("won", "even", "verdict"),
    [
        (2, 0, "too few problems to tell"),
        (5, 0, "too few problems to tell"),
        (5, 15, "too few changed problems to tell"),
        (6, 0, "better"),
        (6, 14, "better"),
        (0, 200, "too few changed problems to tell"),
    ],
)
@pytest.mark.parametrize("samples", [1, 4])
def test_five_changed_questions_can_tell_nothing(won, even, verdict, samples):
    # 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125
    found = difference([0] * (won + even), [1] * won + [0] * even, samples)
    assert found.verdict == verdict
    assert found.p == pytest.approx(min(1, 2 / 2**won))


@pytest.mark.parametrize("problems", [2, 3, 5, 6, 8, 10, 30])
@pytest.mark.parametrize("samples", [1, 4, 16])
def test_equal_models_are_told_apart_in_one_comparison_of_twenty(problems, samples):
    """Each problem has a chance of its own, the same for both models."""
    rng, trials, told, covers = np.random.default_rng(0), 400, 0, 0
    for _ in range(trials):
        chances = rng.beta(0.5, 0.5, problems)
        first, second = (rng.binomial(samples, chances) / samples for _ in range(2))
        found = difference(first.tolist(), second.tolist(), samples)
        told += found.distinguishable
        covers += found.figure.low <= 0 <= found.figure.high
    assert told / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    assert told + covers == trials  # the verdict and the interval agree


@pytest.mark.parametrize("problems", [2, 6, 10, 30])
@pytest.mark.parametrize("samples", [4, 16])
def test_the_interval_of_a_true_difference_covers_it(problems, samples):
    rng, trials, covers = np.random.default_rng(0), 400, 0
    for _ in range(trials):
        chances = rng.beta(0.5, 0.5, problems)
        first, second = rng.binomial(samples, chances) / samples, rng.binomial(samples, chances * 0.7 + 0.3) / samples
        figure = difference(first.tolist(), second.tolist(), samples).figure
        covers += figure.low <= 0.15 <= figure.high
    assert covers / trials > 0.917


def test_a_verdict_and_its_interval_never_contradict_each_other():
    rng = random.Random(0)
    for _ in range(300):
        count, share_won = rng.choice([6, 10, 40]), rng.random()
        first = [rng.random() < 0.5 for _ in range(count)]
        second = [one or rng.random() < share_won for one in first]
        found = difference([float(one) for one in first], [float(one) for one in second])
        assert found.distinguishable == (not found.figure.low <= 0 <= found.figure.high) == (found.p < 0.05)


# What a number of problems, or of runs, can show.


@pytest.mark.parametrize(("problems", "points"), [(200, 6.4), (500, 4.1), (1319, 2.5), (2000, 2.0), (100, 8.8)])
def test_the_difference_that_so_many_problems_can_show(problems, points):
    # near the normal approximation, (1.96 + 0.84) x sqrt(0.10 / n): 6.3, 4.0, 2.4, 2.0, 8.9
    assert 100 * detectable(problems) == pytest.approx(points, abs=0.05)
    assert 100 * detectable(problems) == pytest.approx(280 * (0.1 / problems) ** 0.5, abs=0.2)
    assert power(problems, detectable(problems), 0.1) == pytest.approx(0.8, abs=1e-3)
    wanted = f"{problems:,} problems can show a difference of {points} points (80 % power, where two models disagree on 10 % of them)"
    assert problems_show(problems) == wanted


def test_few_problems_show_large_differences_or_none():
    # with six problems all of them must be won: 0.9635^6 = 0.8
    assert detectable(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)
    assert problems_show(5) == "5 problems cannot show a difference"
    assert power(6, 1.0, 0.1) == 1
    assert power(5, 1.0, 0.1) == 0


@pytest.mark.parametrize(("problems", "change", "changed"), [(40, 0.2, 0.3), (120, 0.1, 0.1), (200, 0.064, 0.1)])
def test_the_power_is_how_often_the_verdict_finds_a_difference(problems, change, changed):
    rng, trials = np.random.default_rng(0), 600
    chances = [1 - changed, (changed + change) / 2, (changed - change) / 2]  # the same, won, lost
    found = 0
    for _ in range(trials):
        same, won, lost = rng.multinomial(problems, chances)
        found += sign_flip(np.array([0] * same + [1] * won + [-1] * lost)) < 0.05
    assert found / trials == pytest.approx(power(problems, change, changed), abs=0.06)


def test_several_samples_show_the_difference_that_their_spread_allows():
    rng, trials, told = np.random.default_rng(0), 300, 0

    def pair(gain: float) -> tuple[list[float], list[float]]:
        chances = rng.beta(0.5, 0.5, 100) * (1 - gain)
        return (rng.binomial(8, chances) / 8).tolist(), (rng.binomial(8, chances + gain) / 8).tolist()

    shows = np.mean([difference(*pair(0.05), 8).shows for _ in range(20)])
    for _ in range(trials):
        told += difference(*pair(shows), 8).distinguishable
    assert told / trials == pytest.approx(0.8, abs=0.1)


runs = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=2, max_size=6)


@settings(deadline=None)
@given(runs, runs)
def test_settings_are_compared_over_runs_as_scipy_does(first, second):
    for paired in (False, True):
        other = (second * 3)[: len(first)] if paired else second
        spreads = [np.std(np.subtract(other, first))] if paired else [np.std(first), np.std(other)]
        if min(spreads) < 1e-6:
            continue
        wanted = ttest_rel(other, first) if paired else ttest_ind(other, first, equal_var=False)
        found = over_seeds(first, other, paired)
        assert found.p == pytest.approx(wanted.pvalue, abs=1e-9)
        if found.p < 0.05:
            assert (found.figure.low, found.figure.high) == pytest.approx(
                tuple(np.clip(wanted.confidence_interval(), -1, 1))
            )
        else:
            assert found.figure.low <= 0 <= found.figure.high


def test_a_comparison_over_runs_knows_their_number():
    # differences of 0.02, 0.05 and 0.02: mean 0.03, standard error sqrt(0.0003 / 3) = 0.01, t = 3 with 2 degrees of
    # freedom, of which the two-sided p is 1 - 3 / sqrt(2 + 9)
    worse = over_seeds([0.98, 0.97, 0.99], [0.96, 0.92, 0.97], paired=True)
    assert worse.p == pytest.approx(1 - 3 / 11**0.5)
    assert worse.verdict == "not distinguishable"
    assert str(worse) == "-0.030 (-0.073 to +0.013), paired t-test's p 0.095"
    assert worse.shows == pytest.approx(0.01 * (4.3027 + 1.0607), abs=1e-5)  # t at 0.975 and at 0.8
    assert nct.sf(4.3027, 2, 100 * worse.shows) == pytest.approx(0.8, abs=0.05)
    assert over_seeds([0.98, 0.97, 0.99], [0.39, 0.38, 0.36], paired=True).verdict == "worse"
    assert str(amount([-0.5] * 50)) == "-0.500 (-0.528 to -0.472)"
    assert over_seeds([0, 1], [0.5, 0.5]).interval == "+0.000 (-1.000 to +1.000)"
    equal = over_seeds([0.5, 0.5], [0.6, 0.6])
    assert (equal.verdict, equal.p, equal.shows) == ("too few different runs to tell", 1, math.inf)
    assert over_seeds([0.5, 0.6], [0.5, 0.6], paired=True).verdict == "not distinguishable"
    with pytest.raises(UserError, match="over seeds: 1 and 3 runs: give two or more per setting"):
        over_seeds([0.5], [0.5, 0.6, 0.7])


def test_the_verdicts_on_settings_follow_from_their_seeds():
    rows = re.findall(r"\| ([^|]+); by seed ([^|]+) \|", (ROOT / "docs" / "choosing.md").read_text())
    assert len(rows) == 4
    for said, seeds in rows:
        found = over_seeds([0, 0, 0], [float(one) for one in seeds.split(", ")], paired=True)
        assert said == f"{found.verdict}: {found}"


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("paired", [True, False])
def test_equal_settings_are_told_apart_in_one_comparison_of_twenty(count, paired):
    rng, trials = np.random.default_rng(0), 800
    drawn = rng.normal(0.5, 0.02, (trials, 2, count)).tolist()
    told = sum(over_seeds(first, second, paired).distinguishable for first, second in drawn)
    assert told / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
