"""example_tests.py: published intervals, scipy's tests, and simulations with a known truth."""

import numpy
import pytest
from scipy import stats

from lth_scale.science.example_tests import (
    compare_accuracy,
    compare_metric,
    hierarchical_interval,
    mcnemar_p,
    tango_interval,
)


def predictions(both: int, better: int, worse: int, neither: int) -> tuple:
    """Whether each of two networks is right, for these numbers of examples."""
    counts = (both, better, worse, neither)
    return (
        numpy.repeat([True, True, False, False], counts),
        numpy.repeat([True, False, True, False], counts),
    )


@pytest.mark.parametrize(
    ("better", "worse", "n", "interval"),
    [
        # Fagerland, Lydersen, Laake 2017, Table 8.8, from Bentur et al. 2009
        (1, 7, 21, (-0.517, -0.026)),
        # no discordant pair: ± z² / (n + z²), by hand from equation 13 of Tango 1998
        (0, 0, 50, (-3.841459 / 53.841459, 3.841459 / 53.841459)),
        # all discordant: (1 − d) / (1 + d) = z² / n, by hand
        (5, 0, 5, ((5 - 3.841459) / (5 + 3.841459), 1.0)),
    ],
)
def test_tangos_interval_is_the_published_one(better, worse, n, interval):
    assert tango_interval(better, worse, n, 0.95) == pytest.approx(interval, abs=5e-4)
    low, high = tango_interval(worse, better, n, 0.95)
    assert (-high, -low) == pytest.approx(interval, abs=5e-4)


def test_accuracies_are_compared_with_delta():
    assert compare_accuracy(*predictions(800, 20, 20, 160), 0.02).answer == "no worse"
    assert compare_accuracy(*predictions(700, 20, 120, 160), 0.02).answer == "worse"
    told = compare_accuracy(*predictions(80, 2, 4, 14), 0.02)
    assert told.answer == "undecided" and told.difference == pytest.approx(-0.02) and told.n == 100


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    assert mcnemar_p(*predictions(50, 3, 12, 9)) == pytest.approx(
        stats.binomtest(3, 15, 0.5).pvalue
    )
    assert mcnemar_p(*predictions(50, 0, 0, 9)) == 1.0


def test_predictions_of_other_shapes_are_refused():
    one, other = numpy.ones(3, bool), numpy.ones(4, bool)
    with pytest.raises(ValueError, match="shapes"):
        compare_accuracy(one, other, 0.01)
    with pytest.raises(ValueError, match="shapes"):
        compare_accuracy(one[:0], one[:0], 0.01)


def correlation(predictions, labels):
    return stats.pearsonr(predictions, labels).statistic


def test_the_bootstrap_compares_the_same_examples():
    generator = numpy.random.default_rng(0)
    labels = generator.normal(size=300)
    full = labels + generator.normal(size=300)
    told = compare_metric(correlation, full + 0.01 * generator.normal(size=300), full, labels, 0.01)
    assert told.answer == "no worse" and told.interval[1] - told.interval[0] < 0.01
    told = compare_metric(correlation, generator.normal(size=300), full, labels, 0.01)
    assert told.answer == "worse"


def test_at_a_true_difference_of_delta_tangos_interval_rarely_errs():
    generator, draws, n, delta = numpy.random.default_rng(0), 4000, 500, 0.02
    # both right, only the first, only the second, neither: a difference of −δ
    counts = generator.multinomial(n, [0.75, 0.05, 0.05 + delta, 0.13], size=draws)
    wrong = sum(tango_interval(b, c, n, 0.9)[0] > -delta for _, b, c, _ in counts)
    assert 0.03 < wrong / draws < 0.065


def test_the_hierarchical_bootstrap_needs_five_seeds():
    generator = numpy.random.default_rng(0)
    labels = generator.integers(2, size=200)
    full = numpy.where(generator.random((5, 200)) < 0.8, labels, 1 - labels)

    def accuracy(predictions, labels):
        return float((predictions == labels).mean())

    assert hierarchical_interval(accuracy, full[:4], full[:4], labels) is None
    low, high = hierarchical_interval(accuracy, full, full[::-1], labels)
    assert low < 0 < high
