"""Figures with their 95 % interval over problems, the difference of two models on the same problems and of two
settings over several runs, and the difference that so many problems can show.

Problems are the unit that was drawn; the samples of one problem are not independent evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

from grpo_math.errors import UserError

LEVEL, POWER = 0.05, 0.8  # of every test, and of what it is said to show
FEWEST = 6  # changed problems: the p of five is 2 / 2^5 at least
CHANGED = 0.10  # share of the problems that one of two models answers right and the other wrong, where it is not known
FINEST = 1_000  # parts of a problem that a test tells apart: its time grows with them
SAME = 1e-9  # a spread of runs that is rounding


@dataclass(frozen=True)
class Figure:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """NAME, NAME_low and NAME_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    @classmethod
    def of(cls, row: dict, name: str) -> "Figure":
        """The figure that `named` put into a row."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"])

    def text(self, digits: int) -> str:
        to = "-" if self.low >= 0 else " to "
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}{to}{self.high:.{digits}f})"

    def __str__(self) -> str:
        return self.text(3)


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22:209-212). Neither number needs to be whole."""
    z, p = NormalDist().inv_cdf(1 - LEVEL / 2), successes / trials
    half = z * math.sqrt(p * (1 - p) / trials + (z / trials) ** 2 / 4)
    low, high = ((p + z * z / trials / 2 + end) / (1 + z * z / trials) for end in (-half, half))
    return max(low, 0.0), min(high, 1.0)


def share(values: list[float]) -> Figure:
    """The mean of one value in [0, 1] per problem.

    Its interval is Wilson's for the effective number of problems (Korn and Graubard 1998, Survey Methodology
    24:193-201): as many as would leave the mean equally uncertain if each were 0 or 1, which is their number where each
    is. The spread of the values counts a 0 and a 1 more, so that a few equal ones are not certain. Simulated with 2 to
    200 problems of 4 or 16 samples, with means of 0.01 to 0.8, it covers at least 92 %, mostly more than 95 %.
    """
    count, total = len(values), sum(values)
    middle, square = (total + 1) / (count + 2), (sum(value * value for value in values) + 1) / (count + 2)
    effective = (middle - middle**2) / (square - middle**2)
    return Figure(total / count, *wilson_interval(total * effective, count * effective))


def amount(values: list[float]) -> Figure:
    """The mean of one value per problem, such as a length or a reward, with Student's interval, which is not below 0
    where no value is. The spread counts a 0 and twice the mean more."""
    mean = fmean(values)
    half = reach(*standard_error(values, (0, 2 * mean)))
    floor = 0.0 if min(values) >= 0 else -math.inf
    return Figure(mean, max(mean - half, floor), mean + half)


def standard_error(values: Sequence[float], further: tuple[float, float]) -> tuple[float, float]:
    """Of the mean, with its degrees of freedom. The spread counts two further values, so that neither one value nor a
    few equal ones are certain."""
    return float(np.std([*values, *further], ddof=1)) / math.sqrt(len(values)), len(values) + 1


def reach(error: float, freedom: float, chance: float = 1 - LEVEL / 2) -> float:
    """The quantile of Student's t, times a standard error."""
    from scipy.stats import t

    return float(t.ppf(chance, freedom)) * error


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of k of the samples, drawn without replacement, at least one is right: the unbiased estimate of
    pass@k for one problem (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Difference:
    """The accuracy of B less that of A. The interval includes 0 wherever p is not below 0.05.

    Attributes:
        figure: The difference, in [-1, 1], with the ends of its 95 % interval.
        p: The p of the test.
        test: The name of the test.
        error: The standard error of the difference, infinite where nothing can be shown.
        freedom: The degrees of freedom of the standard error.
        problems: The number of problems, where each has one sample; else 0.
        won: The number of problems on which B does better.
        lost: The number of problems on which B does worse.
        few: What there is too little of for a p below 0.05; empty if there is enough.
    """

    figure: Figure
    p: float
    test: str
    error: float
    freedom: float
    problems: int = 0
    won: int = 0
    lost: int = 0
    few: str = ""

    @property
    def shows(self) -> float:
        """The smallest difference that would be found with 80 % power among as many problems or runs, if their
        differences spread as these do."""
        if self.problems:
            return detectable(self.problems, self.problems * self.error**2)
        return reach(self.error, self.freedom) + reach(self.error, self.freedom, POWER)

    @property
    def distinguishable(self) -> bool:
        return self.p < LEVEL and not self.figure.low <= 0 <= self.figure.high

    @property
    def verdict(self) -> str:
        """Of B: better, worse, not distinguishable, or too few problems to tell."""
        if self.few:
            return f"too few {self.few} to tell"
        if not self.distinguishable:
            return "not distinguishable"
        return "better" if self.figure.value > 0 else "worse"

    @property
    def interval(self) -> str:
        return f"{self.figure.value:+.3f} ({self.figure.low:+.3f} to {self.figure.high:+.3f})"

    def __str__(self) -> str:
        return f"{self.interval}, {self.test} {self.p:.2g}"


def difference(first: list[float], second: list[float], samples: int = 1) -> Difference:
    """`first` and `second` hold the share of right samples of each problem, in the same order; `samples` is their
    number, or a common multiple where they have different ones.

    The interval is Newcombe's for one sample. For several it is Student's, its spread with two problems more on which
    B wins and loses one sample: simulated with 2 to 200 problems it covers at least 92 %.
    """
    changes, count = np.subtract(second, first), len(first)
    won, lost = int((changes > 0).sum()), int((changes < 0).sum())
    few = "" if won + lost >= FEWEST else "problems" if count < FEWEST else "changed problems"
    p = sign_flip(np.rint(changes * min(samples, FINEST)).astype(int))
    if samples == 1:
        both = sum(a == b == 1 for a, b in zip(first, second, strict=True))
        figure = with_zero(paired_difference(both, won, lost, count), p)
        error = float(np.std(changes)) / math.sqrt(count)
        return Difference(figure, p, "McNemar's exact p", error, count - 1, count, won, lost, few)
    mean = float(np.mean(changes))
    error, freedom = standard_error(changes.tolist(), (-1 / samples, 1 / samples))
    half = reach(error, freedom)
    figure = with_zero(Figure(mean, max(mean - half, -1.0), min(mean + half, 1.0)), p)
    if count < FEWEST:
        error = math.inf
    return Difference(figure, p, "exact sign-flip p", error, freedom, 0, won, lost, few)


def with_zero(figure: Figure, p: float) -> Figure:
    """The figure of a difference, its interval extended to 0 where the test does not exclude 0."""
    return figure if p < LEVEL else Figure(figure.value, min(figure.low, 0.0), max(figure.high, 0.0))


def sign_flip(changes: np.ndarray) -> float:
    """The exact two-sided p of whole numbers that are equally likely with the other sign if there is no difference
    (Fisher 1935, The Design of Experiments, section 21). Where all are 1, 0 or -1 this is McNemar's exact test (1947,
    Psychometrika 12:153-157)."""
    chances = np.ones(1)  # of every sum that the signs can give, from the least to the greatest in steps of 1
    for size in np.abs(changes[changes != 0]):
        chances = (np.pad(chances, (0, 2 * size)) + np.pad(chances, (2 * size, 0))) / 2
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(float(chances[np.abs(sums) >= abs(changes.sum())].sum()), 1.0)


def paired_difference(both: int, won: int, lost: int, count: int) -> Figure:
    """The difference of two paired shares, with Newcombe's interval from Wilson's (1998, Statistics in Medicine
    17:2635-2650, method 10). `both` counts the problems right in both, `won` those right in the second only."""
    neither = count - both - won - lost
    p2, p1 = (both + won) / count, (both + lost) / count
    (low2, high2), (low1, high1) = wilson_interval(both + won, count), wilson_interval(both + lost, count)
    product = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    covariance: float = both * neither - won * lost
    if covariance > 0:
        covariance = max(covariance - count / 2, 0)
    phi = covariance / math.sqrt(product) if product else 0.0
    below, above = (p2 - low2, high1 - p1), (high2 - p2, p1 - low1)
    half = [math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0)) for a, b in (below, above)]
    return Figure(p2 - p1, p2 - p1 - half[0], p2 - p1 + half[1])


def power(problems: int, change: float, changed: float) -> float:
    """The chance that McNemar's exact test finds a true difference of `change` at the 5 % level, where the answers to a
    share of `changed` of the problems change from right to wrong or back, or of `change` where that is more."""
    from scipy.stats import binom

    changed = max(changed, change)
    counts = np.arange(problems + 1)
    chances = binom.pmf(counts, problems, changed)
    counts, chances = counts[chances > SAME], chances[chances > SAME]
    worst = binom.ppf(LEVEL / 2, counts, 0.5) - 1  # the most problems lost, of so many changed, at which p < 0.05
    worst += 2 * binom.cdf(worst + 1, counts, 0.5) < LEVEL
    lost = (1 - change / changed) / 2
    found = binom.cdf(worst, counts, lost) + binom.sf(counts - worst - 1, counts, lost)
    return float(chances @ found)


def detectable(problems: int, changed: float = CHANGED) -> float:
    """The smallest difference that `power` puts at 80 %: 0.064 with 200 problems, 0.025 with 1,319. Infinite below six
    problems, which show none."""
    from scipy.optimize import brentq

    if problems < FEWEST:
        return math.inf
    return float(brentq(lambda change: power(problems, change, changed) - POWER, SAME, 1.0, xtol=1e-5))


def over_seeds(first: list[float], second: list[float], paired: bool = False) -> Difference:
    """The second setting less the first by the accuracies of their runs, which are the unit here: what a setting does
    differs from seed to seed. Welch's t-test (1947, Biometrika 34:28-35); Student's where the runs are `paired`, as by
    problems that each seed has of its own. Raises UserError for fewer than two runs of a setting."""
    from scipy.stats import t

    if min(len(first), len(second)) < 2:
        raise UserError(f"over seeds: {len(first)} and {len(second)} runs: give two or more per setting")
    value = fmean(second) - fmean(first)
    test = "paired t-test's p" if paired else "Welch's p"
    samples = [np.subtract(second, first)] if paired else [np.array(first), np.array(second)]
    errors = [float(np.var(values, ddof=1)) / len(values) for values in samples]  # of the means, squared
    error = math.sqrt(sum(errors))
    if error < SAME:
        few = "different runs" if abs(value) > SAME else ""
        return Difference(with_zero(Figure(value, value, value), 1.0), 1.0, test, math.inf, 1, few=few)
    freedom = sum(errors) ** 2 / sum(one**2 / (len(values) - 1) for one, values in zip(errors, samples, strict=True))
    p, half = float(2 * t.sf(abs(value) / error, freedom)), reach(error, freedom)
    figure = with_zero(Figure(value, max(value - half, -1.0), min(value + half, 1.0)), p)
    return Difference(figure, p, test, error, freedom)


def holm(values: list[float]) -> list[float]:
    """The p of several tests, each adjusted for their number: with those below 0.05 the chance that any of them is one
    without a difference is at most 5 % (Holm 1979, Scandinavian Journal of Statistics 6:65-70)."""
    adjusted, most = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        most = max(most, min((len(values) - place) * values[index], 1.0))
        adjusted[index] = most
    return adjusted


def span(values: list[float]) -> str:
    """The mean of a setting's runs, with the least and the most: 0.347 (0.340-0.360)"""
    return f"{fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def can_show(what: str, change: float, where: str) -> str:
    """200 problems can show a difference of 6.4 points (80 % power, where two models disagree on 10 % of them)"""
    if change > 1:
        return f"{what} cannot show a difference"
    return f"{what} can show a difference of {100 * change:.1f} points ({100 * POWER:.0f} % power, {where})"


def problems_show(problems: int) -> str:
    """What `can_show` says of an evaluation with one sample per problem, before there is another to compare it with."""
    change = detectable(problems)
    where = f"where two models disagree on {100 * max(CHANGED, min(change, 1)):.0f} % of them"
    return can_show(f"{problems:,} problem{'s' * (problems != 1)}", change, where)
