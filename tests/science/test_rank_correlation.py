"""Spearman's ρ is scipy's, and its p is that of permutations."""

import math

import numpy
import pytest
from scipy.stats import spearmanr

from lth_scale.science.rank_correlation import spearman


@pytest.mark.parametrize("n", [5, 8, 11])
def test_rho_is_that_of_scipy_also_with_ties(n):
    generator = numpy.random.default_rng(n)
    x, y = generator.integers(0, 6, (2, n)).tolist()
    assert spearman(x, y).rho == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("y", "extreme"),
    [
        # Orders of 1 to 5 by Σd²: 0 and 40 once each, 2 and 38 four times each (Kendall, Rank
        # Correlation Methods, Appendix Table 2).
        ([1, 2, 3, 4, 5], 2),
        ([5, 4, 3, 2, 1], 2),
        ([2, 1, 3, 4, 5], 10),
    ],
)
def test_p_of_few_pairs_is_exact_and_two_sided(y, extreme):
    assert spearman([1, 2, 3, 4, 5], y).p == pytest.approx(extreme / 120)


def test_p_of_many_pairs_is_that_of_the_t_approximation_within_its_error():
    generator = numpy.random.default_rng(3)
    x = generator.normal(size=30)
    y = x + 2 * generator.normal(size=30)
    assert spearman(x, y).p == pytest.approx(spearmanr(x, y).pvalue, abs=0.005)
    assert spearman(x, y) == spearman(x, y)
    assert spearman(x, x).p == pytest.approx(1e-5)  # never 0


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 5], [7] * 5)])
def test_few_pairs_and_constants_have_no_correlation(x, y):
    rho, p, n = spearman(x, y)
    assert math.isnan(rho) and math.isnan(p) and n == len(x)
