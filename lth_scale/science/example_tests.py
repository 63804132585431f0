"""Do two trained networks differ on this test set? Tests over its examples.

They speak of one test set and of these networks, not of the training procedure: the answer over
seeds (`noninferiority`) does not depend on them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy
from numpy import ndarray
from scipy import optimize, stats

from lth_scale.science.example_scores import Examples
from lth_scale.science.noninferiority import ALPHA

RESAMPLES = 9999
CHUNK = 2**21  # examples that are resampled at once: 16 MB of weights, enough for a quick product
FEWEST_SEEDS = 5  # of the hierarchical bootstrap; below, its coverage is far from nominal
Answer = Literal["no worse", "worse", "undecided"]


class Difference(NamedTuple):
    """The difference of two scores, first − second, and its two-sided 1 − 2α interval."""

    difference: float
    low: float
    high: float

    def answer(self, delta: float) -> Answer:
        """Whether the first network is worse than the second by `delta` or more."""
        return "no worse" if self.low > -delta else "worse" if self.high < -delta else "undecided"


def compare_shares(sub: ndarray, full: ndarray, alpha: float = ALPHA) -> Difference:
    """Compare accuracies by Tango's score interval for paired proportions (Tango 1998).

    sub, full: bool (examples,), whether each prediction is right. Raises ValueError if their shapes
    differ or they are empty.
    """
    if sub.shape != full.shape or not len(sub):
        raise ValueError(f"predictions of shapes {sub.shape} and {full.shape} cannot be compared")
    better, worse = _discordant(sub, full)
    interval = tango_interval(better, worse, len(sub), 1 - 2 * alpha)
    return Difference((better - worse) / len(sub), *interval)


def mcnemar_p(sub: ndarray, full: ndarray) -> float:
    """The p-value of "both are right equally often": the exact test (McNemar 1947).

    sub, full: as for `compare_shares`. A small p shows that they differ, a large p shows nothing.
    """
    better, worse = _discordant(sub, full)
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _discordant(sub: ndarray, full: ndarray) -> tuple[int, int]:
    return int((sub & ~full).sum()), int((full & ~sub).sum())


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


def resample(networks: Sequence[Examples]) -> ndarray:
    """Scores on bootstrap samples of the examples, float64 (networks, RESAMPLES).

    Every network is scored on the same samples, so that differences are paired. The samples depend
    on the number of examples alone, which all networks must share.
    """
    (n,) = {len(network.rows) for network in networks}
    parts = numpy.concatenate([network.parts for network in networks], axis=1)
    ends = numpy.cumsum([network.parts.shape[1] for network in networks])[:-1]
    scores = []
    for weights in _samples(n):
        sums = numpy.split(weights @ parts, ends, axis=1)  # one product for all of them
        pairs = zip(networks, sums, strict=True)
        scores.append([network.score(weights, own) for network, own in pairs])
    return numpy.concatenate(scores, axis=1)


def _samples(n: int) -> Iterator[ndarray]:
    """How often each of n examples is in each sample, float64 (samples, n), a part at a time."""
    generator, size = numpy.random.default_rng(0), max(1, CHUNK // n)
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = generator.integers(n, size=(count, n), dtype=numpy.int32)
        drawn += n * numpy.arange(count, dtype=numpy.int32)[:, None]
        yield numpy.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(float)


def compare_resampled(difference: float, draws: ndarray, alpha: float = ALPHA) -> Difference:
    """Compare any two scores by a paired bootstrap: the percentiles of their difference.

    difference: on all examples. draws: (RESAMPLES,), the difference of two rows of `resample`.
    """
    return Difference(difference, *_percentiles(draws, alpha))


def compare_hierarchically(difference: float, draws: ndarray, alpha: float = ALPHA) -> Difference:
    """Compare mean scores by a bootstrap over seeds and examples, both drawn anew.

    difference: of the means, on all examples. draws: (seeds, RESAMPLES), as for `compare_resampled`
    for each seed that both have. Raises ValueError below five seeds.
    """
    seeds, count = draws.shape
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"{seeds} seeds, and this bootstrap needs {FEWEST_SEEDS}")
    generator = numpy.random.default_rng(0)
    times = generator.multinomial(seeds, numpy.full(seeds, 1 / seeds), size=count)
    return Difference(difference, *_percentiles((times.T * draws).sum(axis=0) / seeds, alpha))


def resampled_bound(draws: ndarray, alpha: float = ALPHA) -> float:
    """The one-sided 1 − α lower confidence bound of a score; draws: a row of `resample`."""
    return _percentiles(draws, alpha)[0]


def share_bound(right: ndarray, alpha: float = ALPHA) -> float:
    """The one-sided 1 − α lower confidence bound of a proportion (Clopper and Pearson 1934).

    right: bool (examples,).
    """
    hits, n = int(right.sum()), len(right)
    return float(stats.beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0


def _percentiles(draws: ndarray, alpha: float) -> tuple[float, float]:
    low, high = numpy.quantile(draws, (alpha, 1 - alpha))
    return float(low), float(high)
