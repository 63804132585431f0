"""Spearman's rank correlation, with its p by permutation."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy
from scipy.stats import rankdata

FEWEST = 5  # below, even a perfect order has p = 2 ÷ 4! = 0.083
MOST_EXACT = 8  # pairs whose orders are enumerated: 8! = 40,320
DRAWS = 99_999  # random orders beyond that
BATCH = 10_000  # orders at a time
CLOSE = 1e-9  # below the least difference between two correlations of ranks


class Correlation(NamedTuple):
    """ρ, its two-sided p and the number of pairs; NaN below FEWEST pairs or if all are tied."""

    rho: float
    p: float
    n: int


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Correlate the ranks of pairs; ties have their mean rank.

    p is the share of orders whose |ρ| is at least as large: of all orders up to MOST_EXACT pairs,
    else of DRAWS random ones and the one seen, with a fixed seed.
    """
    n = len(x)
    ranks = [rankdata(values) - (n + 1) / 2 for values in (x, y)]
    norm = math.sqrt(math.prod(float(centred @ centred) for centred in ranks))
    if n < FEWEST or norm == 0:
        return Correlation(math.nan, math.nan, n)
    first, second = ranks[0] / norm, ranks[1]
    rho = float(first @ second)
    found = [abs(orders @ first) >= abs(rho) - CLOSE for orders in _orders(second)]
    extreme = numpy.concatenate(found)
    # The order seen is one of all, but not one of those drawn.
    p = extreme.mean() if n <= MOST_EXACT else (extreme.sum() + 1) / (len(extreme) + 1)
    return Correlation(rho, float(p), n)


def _orders(values: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """All orders of up to MOST_EXACT values, else DRAWS random ones: (orders, values), in parts."""
    if len(values) <= MOST_EXACT:
        yield numpy.array([*itertools.permutations(values)])
        return
    generator = numpy.random.default_rng(0)
    for start in range(0, DRAWS, BATCH):
        rows = min(BATCH, DRAWS - start)
        yield generator.permuted(numpy.tile(values, (rows, 1)), axis=1)
