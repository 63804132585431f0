"""matching.py, compared with SciPy, hand-computed values and the paper's tables."""

import math

import pytest
from scipy import stats

from lth_scale.science import matching, paper

SUB, FULL = [81.0, 82.0, 84.0], [83.0, 84.0, 86.0, 87.0]


def rules(sub, full, delta=1.0):
    return {v.rule: v for v in matching.verdicts(sub, full, delta)}


def exactly(mean, sd):
    """Five scores of that mean and standard deviation (its sum of squares is 4 sd²)."""
    return [mean, mean - sd, mean - sd, mean + sd, mean + sd]


def test_summary_and_its_text():
    s = matching.summary([82.4, 82.6, 82.8])
    assert (round(s.mean, 9), round(s.sd, 9), s.n) == (82.6, 0.2, 3)
    assert str(s) == "82.6 ± 0.2 (n = 3)" and f"{s:.3f}" == "82.600 ± 0.200 (n = 3)"
    one = matching.summary({7: 0.5})
    assert math.isnan(one.sd) and str(one) == "0.5 (n = 1)"
    assert str(matching.summary([])) == "missing"


def test_welch_equals_scipy_and_the_formula():
    # means 82.333, 85; variances 7/3, 10/3; se² = 7/9 + 10/12; t = (82.333 + 1 − 85)/se
    se2 = 7 / 9 + 10 / 12
    t = (82 + 1 / 3 + 1 - 85) / math.sqrt(se2)
    df = se2**2 / ((7 / 9) ** 2 / 2 + (10 / 12) ** 2 / 3)
    assert matching.welch(matching.summary(SUB), matching.summary(FULL), 1.0) == pytest.approx(
        stats.t.cdf(t, df), rel=1e-9
    )
    shifted = [x + 1 for x in SUB]
    expected = stats.ttest_ind(shifted, FULL, equal_var=False, alternative="less").pvalue
    assert rules(SUB, FULL)["welch"].p == pytest.approx(expected)


def test_paired_uses_only_common_seeds():
    sub, full = {1: 80.0, 2: 81.0, 3: 83.0, 9: 0.0}, {3: 84.0, 2: 83.5, 1: 82.0, 8: 99.0}
    v = rules(sub, full, 0.5)["paired"]
    differences = [-2.0, -2.5, -1.0]
    t = (sum(differences) / 3 + 0.5) / (
        math.sqrt(7 / 12) / math.sqrt(3)
    )  # sd² = ((1/6)² + (4/6)² + (5/6)²)/2 = 7/12
    assert v.p == pytest.approx(stats.t.cdf(t, 2)) and (v.sub.n, v.full.n) == (3, 3)
    assert "paired" not in rules(SUB, FULL)


def test_a_clear_loss_does_not_match_unless_delta_tolerates_it():
    sub, full = [80.0, 80.2, 80.4], [82.0, 82.1, 82.3]
    assert {v.matches for v in matching.verdicts(sub, full, 1.0)} == {False}
    assert rules(sub, full, 3.0)["welch"].matches is True


@pytest.mark.parametrize(
    ("sub", "full", "strict", "sd_full", "sd_max"),
    [
        ([85.0, 85.0], [84.0, 86.0], True, True, True),
        (exactly(84.5, 0.1), exactly(85.0, 0.6), False, True, True),
        (exactly(84.5, 0.6), exactly(85.0, 0.1), False, False, True),
        (exactly(84.3, 0.6), exactly(85.0, 0.1), False, False, False),
    ],
)
def test_rules_of_the_paper(sub, full, strict, sd_full, sd_max):
    verdict_of = rules(sub, full)
    assert [verdict_of[rule].matches for rule in list(matching.RULES)[:3]] == [
        strict,
        sd_full,
        sd_max,
    ]


def test_table_2_of_the_paper_needs_the_larger_standard_deviation():
    table = paper.paper()["table2"]
    verdict = {}
    for task, mean in table["full_bert_mean"]["value"].items():
        full = exactly(mean, table["full_bert_std"]["value"][task])
        ticket = "f(m_IMP,theta0)"
        sub = exactly(table[f"{ticket}_mean"]["value"][task], table[f"{ticket}_std"]["value"][task])
        verdict[task] = {v.rule: v.matches for v in matching.verdicts(sub, full, 1.0)}
    assert all(v["within_sd_max"] for v in verdict.values())
    assert {task for task, v in verdict.items() if not v["within_sd_full"]} == {
        "mrpc",
        "sst2",
        "cola",
        "mlm",
    }


@pytest.mark.parametrize(
    ("sub", "full"),
    [([80.1], [80.2, 80.3]), ([], [80.2, 80.3]), ([80.1] * 3, [80.3] * 3), ({1: 80.1}, {1: 80.3})],
)
def test_tests_without_enough_seeds_or_variance_are_undecided(sub, full):
    for rule in ("welch", "paired"):
        if rule in rules(sub, full):
            assert rules(sub, full)[rule].matches is None and rules(sub, full)[rule].p is None


def test_one_seed_has_no_standard_deviation():
    verdict_of = rules({1: 80.0}, {1: 81.0})
    assert verdict_of["strict"].matches is False
    assert all(verdict_of[rule].matches is None for rule in list(matching.RULES)[1:])


def test_differences_that_are_equal_up_to_rounding_have_no_variance():
    assert matching.paired([82.1, 83.1, 84.3], [82.6, 83.6, 84.8], 1.0) is None


def test_a_tie_matches_in_any_order_of_summation():
    assert rules([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])["strict"].matches is True


def test_holm_equals_the_result_of_r():
    # R: p.adjust(c(.01, .04, .03, .005), "holm") is .03 .06 .06 .02
    assert matching.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert matching.holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert matching.holm([None]) == [None] and matching.holm([]) == []


def test_describe_names_the_rule_of_each_verdict():
    text = matching.describe(
        matching.verdicts({1: 81.0, 2: 82.0, 3: 84.0}, {1: 83.0, 2: 85.0, 3: 86.0}, 1.0)
    )
    assert "82.3 ± 1.5 (n = 3)" in text and "84.7 ± 1.5 (n = 3)" in text
    lines = text.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(matching.RULES)
    assert all("n = 3 and 3" in line for line in lines) and all(
        "δ = 1, p = " in line for line in lines[3:]
    )
    assert "undecided" in matching.describe(matching.verdicts([1.0], [1.0, 2.0], 1.0))
