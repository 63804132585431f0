"""example_tests.py: published intervals, scipy's tests, and simulations with a known truth."""

import numpy
import pytest
from scipy import stats

from lth_scale.science.example_scores import examples_of
from lth_scale.science.example_tests import (
    RESAMPLES,
    Difference,
    compare_hierarchically,
    compare_resampled,
    compare_shares,
    mcnemar_p,
    resample,
    resampled_bound,
    share_bound,
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
    assert compare_shares(*predictions(800, 20, 20, 160)).answer(0.02) == "no worse"
    assert compare_shares(*predictions(700, 20, 120, 160)).answer(0.02) == "worse"
    compared = compare_shares(*predictions(80, 2, 4, 14))
    assert compared.answer(0.02) == "undecided" and compared.difference == pytest.approx(-0.02)


def test_a_bound_of_the_interval_at_delta_decides_nothing():
    assert Difference(0, -1, 1).answer(1) == Difference(-2, -3, -1).answer(1) == "undecided"


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    assert mcnemar_p(*predictions(50, 3, 12, 9)) == pytest.approx(
        stats.binomtest(3, 15, 0.5).pvalue
    )
    assert mcnemar_p(*predictions(50, 0, 0, 9)) == 1.0


def test_predictions_of_other_shapes_are_refused():
    one, other = numpy.ones(3, bool), numpy.ones(4, bool)
    with pytest.raises(ValueError, match="shapes"):
        compare_shares(one, other)
    with pytest.raises(ValueError, match="shapes"):
        compare_shares(one[:0], one[:0])


def correlated(predictions, labels):
    return examples_of({"prediction": predictions, "label": labels}, "pearson")


def test_the_bootstrap_compares_the_same_examples():
    generator = numpy.random.default_rng(0)
    labels = generator.normal(size=300)
    full = labels + generator.normal(size=300)
    like, other = full + 0.01 * generator.normal(size=300), generator.normal(size=300)
    networks = [correlated(values, labels) for values in (full, like, other)]
    full, like, other = resample(networks)
    compared = compare_resampled(0.0, like - full)
    assert compared.answer(0.01) == "no worse" and compared.high - compared.low < 0.01
    assert compare_resampled(0.0, other - full).answer(0.01) == "worse"


def test_resampled_means_have_the_standard_error_of_the_mean():
    values = numpy.random.default_rng(0).random(400).astype("float32")
    (draws,) = resample([examples_of({"f1": values}, "f1")])
    error = float(values.std()) / 20
    assert draws.shape == (RESAMPLES,) and draws.std() == pytest.approx(error, rel=0.03)
    assert resampled_bound(draws) == pytest.approx(
        float(values.mean()) - 1.645 * error, abs=error / 10
    )


def test_the_same_examples_are_drawn_whatever_other_networks_there_are():
    generator = numpy.random.default_rng(0)
    one, other = (examples_of({"f1": generator.random(3000)}, "f1") for _ in range(2))
    assert resample([other, one])[1] == pytest.approx(resample([one])[0])


def test_the_bound_of_a_share_is_clopper_and_pearsons():
    right = numpy.repeat([True, False], [8, 2])
    interval = stats.binomtest(8, 10).proportion_ci(0.9, "exact")
    assert share_bound(right) == pytest.approx(interval.low)
    assert share_bound(numpy.zeros(5, bool)) == 0
    assert share_bound(numpy.ones(5, bool)) == pytest.approx(0.05 ** (1 / 5))  # by hand


def test_at_a_true_difference_of_delta_tangos_interval_rarely_errs():
    generator, draws, n, delta = numpy.random.default_rng(0), 4000, 500, 0.02
    # both right, only the first, only the second, neither: a difference of −δ
    counts = generator.multinomial(n, [0.75, 0.05, 0.05 + delta, 0.13], size=draws)
    wrong = sum(tango_interval(b, c, n, 0.9)[0] > -delta for _, b, c, _ in counts)
    assert 0.03 < wrong / draws < 0.065


def test_at_a_true_difference_of_delta_the_bootstrap_rarely_errs():
    generator, draws, delta = numpy.random.default_rng(0), 300, 0.1
    networks = [
        examples_of({"f1": generator.normal(-delta, 1, size=200)}, "f1") for _ in range(draws)
    ]
    wrong = sum(compare_resampled(0, x).answer(delta) == "no worse" for x in resample(networks))
    assert 0.02 < wrong / draws < 0.09  # 5 % ± 3 standard errors


def test_the_hierarchical_bootstrap_needs_five_seeds():
    draws = numpy.random.default_rng(0).normal(size=(5, RESAMPLES))
    with pytest.raises(ValueError, match="4 seeds, and this bootstrap needs 5"):
        compare_hierarchically(0.0, draws[:4])
    _, low, high = compare_hierarchically(0.0, draws)
    assert low < 0 < high


def test_the_hierarchical_bootstrap_has_the_spread_of_seeds_and_of_examples():
    seeds, spread = numpy.arange(5.0), 0.5
    draws = seeds[:, None] + numpy.random.default_rng(0).normal(scale=spread, size=(1, RESAMPLES))
    difference, low, high = compare_hierarchically(2.0, draws)
    assert difference == 2 and (low + high) / 2 == pytest.approx(2, abs=0.05)
    # the variance of five seeds is 2, and all seeds share the examples
    assert (high - low) / 2 == pytest.approx(1.645 * (2 / 5 + spread**2) ** 0.5, rel=0.05)
