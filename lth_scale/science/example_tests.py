"""Do two trained networks differ on this test set? Tests over its examples.

They speak of one test set and of these networks, not of the training procedure: the answer over
seeds (`noninferiority`) does not depend on them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy
from scipy import optimize, stats

from lth_scale.science.noninferiority import ALPHA

RESAMPLES = 9999
FEWEST_SEEDS = 5  # of the hierarchical bootstrap; below, its coverage is far from nominal
Answer = Literal["no worse", "worse", "undecided"]
Metric = Callable[[numpy.ndarray, numpy.ndarray], float]  # of predictions and labels


@dataclass(frozen=True)
class ExampleVerdict:
    """Whether a network is worse than another by `delta` or more on this test set.

    difference: of the scores, first − second; interval: its two-sided 1 − 2α confidence interval.
    Both are fractions, as is delta.
    """

    answer: Answer
    difference: float
    interval: tuple[float, float]
    delta: float
    n: int


def compare_accuracy(
    sub: numpy.ndarray, full: numpy.ndarray, delta: float, alpha: float = ALPHA
) -> ExampleVerdict:
    """Compare accuracies by Tango's score interval for paired proportions (Tango 1998).

    sub, full: bool (examples,), whether each prediction is right. Raises ValueError if their shapes
    differ or they are empty.
    """
    n = _size(sub, full)
    better, worse = int((sub & ~full).sum()), int((full & ~sub).sum())
    interval = tango_interval(better, worse, n, 1 - 2 * alpha)
    return _decide((better - worse) / n, interval, delta, n)


def compare_metric(
    metric: Metric,
    sub: numpy.ndarray,
    full: numpy.ndarray,
    labels: numpy.ndarray,
    delta: float,
    alpha: float = ALPHA,
) -> ExampleVerdict:
    """Compare any metric by a paired bootstrap over examples (percentiles of 9,999 resamples).

    sub, full, labels: (examples,). The same examples are drawn for both networks.
    """
    n = _size(sub, full)
    differences = numpy.empty(RESAMPLES)
    generator = numpy.random.default_rng(0)
    for i in range(RESAMPLES):
        rows = generator.integers(n, size=n)
        differences[i] = metric(sub[rows], labels[rows]) - metric(full[rows], labels[rows])
    low, high = numpy.quantile(differences, (alpha, 1 - alpha))
    difference = metric(sub, labels) - metric(full, labels)
    return _decide(difference, (float(low), float(high)), delta, n)


def mcnemar_p(sub: numpy.ndarray, full: numpy.ndarray) -> float:
    """The p-value of "both are right equally often": the exact test (McNemar 1947).

    sub, full: as for `compare_accuracy`. A small p shows that they differ, a large p shows nothing.
    """
    better, worse = int((sub & ~full).sum()), int((full & ~sub).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def tango_interval(better: int, worse: int, n: int, level: float) -> tuple[float, float]:
    """The score confidence interval of (better − worse) / n (Tango 1998, equations 8 and 13).

    better, worse: examples that only the first or only the second network gets right, of n.
    """
    z, observed = stats.norm.ppf((1 + level) / 2), (better - worse) / n

    def bound(sign: int) -> float:
        if observed == sign:
            return float(sign)

        def beyond(d: float) -> float:
            return sign * _tango_z(better, worse, n, d) + z

        return float(optimize.brentq(beyond, observed, sign * (1 - 1e-12), xtol=1e-12))

    return bound(-1), bound(1)


def _tango_z(better: int, worse: int, n: int, d: float) -> float:
    """The score statistic of H₀: the difference is d."""
    a, b, c = 2 * n, -better - worse + (2 * n - better + worse) * d, -worse * d * (1 - d)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + d * (1 - d))
    return (better - worse - n * d) / math.sqrt(variance) if variance > 0 else 0.0


def hierarchical_interval(
    metric: Metric,
    sub: numpy.ndarray,
    full: numpy.ndarray,
    labels: numpy.ndarray,
    level: float = 1 - 2 * ALPHA,
) -> tuple[float, float] | None:
    """Interval of the mean difference by a bootstrap over seeds and examples, both drawn anew.

    sub, full: (seeds, examples), paired by seed. None below five seeds.
    """
    seeds, n = sub.shape
    if seeds < FEWEST_SEEDS:
        return None
    generator = numpy.random.default_rng(0)
    means = numpy.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = generator.integers(n, size=n)
        drawn: numpy.ndarray = generator.integers(seeds, size=(seeds,))
        differences = (
            metric(sub[seed, rows], labels[rows]) - metric(full[seed, rows], labels[rows])
            for seed in drawn
        )
        means[i] = sum(differences) / seeds
    low, high = numpy.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _size(sub: numpy.ndarray, full: numpy.ndarray) -> int:
    if sub.shape != full.shape or not len(sub):
        raise ValueError(f"predictions of shapes {sub.shape} and {full.shape} cannot be compared")
    return len(sub)


def _decide(
    difference: float, interval: tuple[float, float], delta: float, n: int
) -> ExampleVerdict:
    low, high = interval
    answer: Answer = "no worse" if low > -delta else "worse" if high < -delta else "undecided"
    return ExampleVerdict(answer, difference, interval, delta, n)
