"""Figures with their 95 % interval over questions: shares, means, pass@k, maj@k, and the difference of two models.

Questions are the unit that was drawn; the samples of one question are not independent evidence.
"""

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000  # of the bootstrap


@dataclass(frozen=True)
class Figure:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """NAME, NAME_low and NAME_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def text(self, digits: int) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def __str__(self) -> str:
        return self.text(3)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22:209-212)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean(values: list[float], seed: int = 0) -> Figure:
    return means({"": values}, seed)[""]


def means(columns: dict[str, list[float]], seed: int = 0) -> dict[str, Figure]:
    """The mean over questions of several columns, each with one value per question.

    Where all values are 0 or 1 the interval is Wilson's, which is never empty; elsewhere it is the bootstrap's.
    """
    figures = bootstrap(columns, seed)
    for name, values in columns.items():
        if all(value in (0, 1) for value in values):
            figures[name] = Figure(figures[name].value, *wilson_interval(round(sum(values)), len(values)))
    return figures


def bootstrap(columns: dict[str, list[float]], seed: int = 0) -> dict[str, Figure]:
    """Means with the percentile bootstrap's intervals (Efron 1979, Annals of Statistics 7:1-26); all columns are
    resampled alike. scipy.stats.bootstrap refuses a single question."""
    values = np.array(list(columns.values()), dtype=float).T  # questions x columns
    count, draws = len(values), np.random.default_rng(seed)
    resampled = [draws.multinomial(count, np.full(count, 1 / count)) @ values / count for _ in range(RESAMPLES)]
    ends = np.quantile(resampled, [0.025, 0.975], axis=0)
    return {name: Figure(*map(float, found)) for name, *found in zip(columns, values.mean(axis=0), *ends, strict=True)}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of k of the samples, drawn without replacement, at least one is right: the unbiased estimate of
    pass@k for one question (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Difference:
    """B less A on the same questions. `p` is None where a question has several samples; `won` and `lost` count the
    questions on which B does better and worse."""

    figure: Figure
    won: int
    lost: int
    p: float | None

    @property
    def distinguishable(self) -> bool:
        """At the 5 % level: by the exact test where there is one, else by the interval."""
        if self.p is not None:
            return self.p < 0.05
        return self.figure.low < self.figure.high and not self.figure.low <= 0 <= self.figure.high

    @property
    def verdict(self) -> str:
        """Of B: better, worse, or not distinguishable."""
        if not self.distinguishable:
            return "not distinguishable"
        return "better" if self.figure.value > 0 else "worse"

    @property
    def interval(self) -> str:
        return f"{self.figure.value:+.3f} ({self.figure.low:+.3f} to {self.figure.high:+.3f})"

    def __str__(self) -> str:
        return self.interval + ("" if self.p is None else f", McNemar's exact p {self.p:.2g}")


def difference(first: list[float], second: list[float], paired_samples: bool) -> Difference:
    """`first` and `second` hold one value per question, in the same order; right or wrong (1 or 0) unless
    `paired_samples`, where they are means over samples and the interval is the bootstrap's."""
    won = sum(b > a for a, b in zip(first, second, strict=True))
    lost = sum(b < a for a, b in zip(first, second, strict=True))
    if paired_samples:
        changes = [b - a for a, b in zip(first, second, strict=True)]
        return Difference(bootstrap({"": changes})[""], won, lost, None)
    both = sum(a == b == 1 for a, b in zip(first, second, strict=True))
    return Difference(paired_difference(both, won, lost, len(first)), won, lost, mcnemar(won, lost))


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test (1947, Psychometrika 12:153-157): without a difference, won and lost
    questions are equally likely."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_difference(both: int, won: int, lost: int, count: int) -> Figure:
    """The difference of two paired shares, with Newcombe's interval from Wilson's (1998, Statistics in Medicine
    17:2635-2650, method 10). `both` counts the questions right in both, `won` those right in the second only."""
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
