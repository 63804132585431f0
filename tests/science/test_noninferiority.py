"""noninferiority.py: numbers by hand and against scipy, and simulations with a known truth."""

import math

import numpy
import pytest
from scipy import stats

from lth_scale.science.noninferiority import correct, holm, noninferiority_p, verdict

SUB, FULL = [81.0, 82.0, 84.0], [83.0, 84.0, 86.0, 87.0]


def test_welch_is_scipys_and_a_formula_by_hand():
    # means 82.333, 85; variances 7/3, 10/3; se² = 7/9 + 10/12; t = (82.333 + 1 − 85)/se
    se2 = 7 / 9 + 10 / 12
    t, df = (82 + 1 / 3 + 1 - 85) / math.sqrt(se2), se2**2 / ((7 / 9) ** 2 / 2 + (10 / 12) ** 2 / 3)
    told = verdict(SUB, FULL, 1.0)
    assert told.p == pytest.approx(stats.t.sf(t, df), rel=1e-9)
    shifted = [x + 1 for x in SUB]
    test = stats.ttest_ind(shifted, FULL, equal_var=False, alternative="greater")
    assert told.p == pytest.approx(test.pvalue) and told.p_worse == pytest.approx(1 - test.pvalue)
    interval = stats.ttest_ind(SUB, FULL, equal_var=False).confidence_interval(0.9)
    assert told.interval == pytest.approx((interval.low, interval.high))
    assert told.difference == pytest.approx(82 + 1 / 3 - 85) and told.n == 3


def test_pairs_are_compared_by_seed_and_only_the_common_ones():
    sub, full = {1: 80.0, 2: 81.0, 3: 83.0, 9: 0.0}, {3: 84.0, 2: 83.5, 1: 82.0, 8: 99.0}
    told = verdict(sub, full, 0.5, paired=True)
    # differences −2, −2.5, −1: mean −11/6, sd² = ((1/6)² + (4/6)² + (5/6)²)/2 = 7/12
    t = (-11 / 6 + 0.5) / math.sqrt(7 / 36)
    assert told.p == pytest.approx(stats.t.sf(t, 2)) and told.n == 3 and told.paired
    margin = 2.919985580353726 * math.sqrt(7 / 36)  # t(0.95, df = 2), from a table
    assert told.interval == pytest.approx((-11 / 6 - margin, -11 / 6 + margin))
    margin = 4.302652729749464 * math.sqrt(7 / 36)  # t(0.975, df = 2)
    assert told.interval_95 == pytest.approx((-11 / 6 - margin, -11 / 6 + margin))


@pytest.mark.parametrize(
    ("sub", "full", "answer"),
    [
        ([81.0, 81.2, 81.1], [81.0, 81.1, 81.3], "matches"),
        ([78.0, 78.2, 78.1], [81.0, 81.1, 81.3], "worse"),
        ([86.0, 86.2, 86.1], [81.0, 81.1, 81.3], "matches"),
        ([80.0, 80.2, 80.1], [81.0, 81.1, 81.3], "undecided"),
        # CoLA at 90 %: nothing was shown
        ([0.0, 0.0, 0.0], [13.9, -2.1, -1.0], "undecided"),
        ([0.0] * 5, [13.9, -2.1, -1.0, 0.4, 6.8], "undecided"),
    ],
)
def test_the_burden_of_proof_is_on_the_claim(sub, full, answer):
    told = verdict(sub, full, 1.0)
    assert told.answer == answer and told.reason
    inside = told.interval[0] <= -1.0 <= told.interval[1]
    assert inside == (answer == "undecided")


def test_the_interval_decides_at_any_alpha():
    generator = numpy.random.default_rng(0)
    for alpha in (0.01, 0.05, 0.2):
        for paired in (False, True):
            for _ in range(50):
                told = verdict(
                    generator.normal(-1, 1, 4), generator.normal(0, 1, 4), 1.0, paired, alpha
                )
                low, high = told.interval
                answer = "matches" if low > -1 else "worse" if high < -1 else "undecided"
                assert told.answer == answer


@pytest.mark.parametrize(
    ("sub", "full", "paired", "words"),
    [
        ([], [], False, "0 seeds a side"),
        ([80.1], [80.2, 80.3, 80.4], False, "1 seed a side"),
        ([80.1, 80.3], [80.2, 80.3, 80.4], False, "2 seeds a side"),
        ({1: 80.1, 2: 80, 3: 81}, {2: 80.1, 3: 80, 4: 81}, True, "2 pairs"),
        ([80.1] * 3, [80.3] * 3, False, "no spread between seeds"),
        # equal differences, though floats say otherwise
        ([82.1, 83.1, 84.3], [82.6, 83.6, 84.8], True, "no spread between differences"),
    ],
)
def test_without_enough_seeds_or_spread_it_is_undecided_with_the_reason(sub, full, paired, words):
    told = verdict(sub, full, 1.0, paired)
    assert told.answer == "undecided" and words in told.reason and math.isnan(told.p)


def test_without_delta_it_is_undecided_but_has_an_interval():
    told = verdict(SUB, FULL, None)
    assert told.answer == "undecided" and "--delta" in told.reason and told.interval[0] < -2


@pytest.mark.parametrize("paired", [False, True])
def test_the_further_seeds_would_settle_it_and_one_less_would_not(paired):
    sub, full = [80.0, 81.0, 82.6], [81.0, 81.4, 82.2]
    more = verdict(sub, full, 1.0, paired).more_seeds
    assert more > 0

    def of_size(scores, n):
        """n scores with the mean and standard deviation of these."""
        z = numpy.resize([-1.0, 1.0], n - n % 2)
        z = numpy.append(z, [0.0] * (n % 2))
        return numpy.mean(scores) + z / z.std(ddof=1) * numpy.std(scores, ddof=1)

    for n, answer in ((3 + more, "matches"), (2 + more, "undecided")):
        if paired:  # the spread that counts is that of the differences
            ours, theirs = of_size(numpy.subtract(sub, full), n), numpy.zeros(n)
        else:
            ours, theirs = of_size(sub, n), of_size(full, n)
        assert verdict(ours, theirs, 1.0, paired).answer == answer


def test_at_a_difference_of_exactly_delta_no_number_of_seeds_settles_it():
    assert verdict([80.0, 81.0, 82.0], [81.0, 82.0, 83.1], 1.0).more_seeds is None
    assert verdict([1.0], [1.0], 1.0).more_seeds == 2  # at least: until there is a test


def test_holm_by_hand():
    # R: p.adjust(c(.01, .04, .03, .005), "holm") is .03 .06 .06 .02
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, math.nan, 0.9])[::2] == [1.0, 1.0] and holm([]) == []


def test_a_family_corrects_matches_and_worse_each():
    full = [81.0, 81.5, 82.0]
    close, far = [81.1, 81.4, 81.9], [70.0, 70.5, 71.2]
    maybe = [80.5, 81.6, 82.4]
    alone = verdict(maybe, full, 1.0, paired=True)
    assert alone.answer == "matches" and math.isnan(alone.holm)
    family = correct([verdict(x, full, 1.0, paired=True) for x in (close, maybe, maybe, far)])
    assert [v.answer for v in family] == ["matches", "undecided", "undecided", "worse"]
    assert family[1].holm == pytest.approx(3 * alone.p) and family[1].p == alone.p
    assert "Holm" in family[1].reason and "Holm" in family[0].reason
    one = verdict([1.0], full, 1.0)
    assert correct([one])[0].answer == "undecided"


@pytest.mark.parametrize(
    "wrong",
    [
        {"sub": [80.0, math.nan, 81.0]},
        {"full": [math.inf, 80.0, 81.0]},
        {"delta": -0.5},
        {"delta": math.nan},
        {"alpha": 0.5},
        {"alpha": 0.0},
        {"full": [80.0, 81.0], "paired": True},
    ],
)
def test_values_out_of_range_are_value_errors(wrong):
    given = {"sub": [80.0, 81.0, 82.0], "full": [80.0, 81.0, 82.5], "delta": 1.0, **wrong}
    with pytest.raises(ValueError, match=r"score|delta|alpha|paired"):
        verdict(**given)


DRAWS = 40_000


def false_matches(n: int, spread: float, paired: bool) -> float:
    """The share of *matches* at a true difference of exactly −δ, with the spread of the second."""
    generator = numpy.random.default_rng(n)
    shared = generator.normal(0, 1, (DRAWS, n)) if paired else 0.0
    sub = shared + generator.normal(-1, spread, (DRAWS, n))
    full = shared + generator.normal(0, 1, (DRAWS, n))
    return float((noninferiority_p(sub, full, 1.0, paired) < 0.05).mean())


@pytest.mark.parametrize("n", [3, 5])
def test_at_a_true_difference_of_delta_few_matches_are_false(n):
    noise = 3 * math.sqrt(0.05 * 0.95 / DRAWS)  # three standard errors of the simulation
    assert false_matches(n, 1.0, paired=True) <= 0.05 + noise
    assert false_matches(n, 0.3, paired=True) <= 0.05 + noise
    assert false_matches(n, 1.0, paired=False) <= 0.05 + noise
    for spread in (0.1, 0.3, 3.0, 10.0):
        assert false_matches(n, spread, paired=False) <= 0.06 + noise


def test_power_grows_with_seeds_and_with_the_gap():
    generator = numpy.random.default_rng(1)

    def power(n: int, difference: float) -> float:
        sub, full = (generator.normal(mean, 0.5, (4000, n)) for mean in (difference, 0.0))
        return float((noninferiority_p(sub, full, 1.0) < 0.05).mean())

    assert power(3, 0.0) < power(5, 0.0) < power(10, 0.0) and power(10, 0.0) > 0.95
    assert power(5, -1.0) < power(5, -0.5) < power(5, 0.0) < power(5, 1.0)


def test_the_vectorised_p_values_are_those_of_the_verdict():
    generator = numpy.random.default_rng(2)
    sub, full = generator.normal(0, 1, (2, 20, 4))
    for paired in (False, True):
        p = noninferiority_p(sub, full, 0.7, paired)
        for i in range(20):
            assert p[i] == pytest.approx(verdict(sub[i], full[i], 0.7, paired).p)


def test_further_seeds_of_a_family_settle_it_at_the_level_of_bonferroni():
    full = [85.0, 85.4, 85.2]
    sub = [85.0, 85.6, 84.7]
    one = verdict(sub, full, 1.0, paired=True)
    assert one.answer == "matches" and one.more_seeds == 0
    family = correct([one] * 4)
    assert {v.answer for v in family} == {"undecided"}
    level = verdict(sub, full, 1.0, paired=True, alpha=0.05 / 4)
    assert {v.more_seeds for v in family} == {level.more_seeds} and level.more_seeds > 0
