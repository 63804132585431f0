"""matching.py: summaries, the paper's rules and the text of a verdict."""

import math

import pytest

from lth_scale.science import matching, noninferiority, paper

FULL = {1: 83.0, 2: 85.0, 3: 86.0}


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
    decided = matching.paper_rules(sub, full)
    assert list(decided) == list(matching.RULES)
    assert list(decided.values()) == [strict, sd_full, sd_max]


def test_table_2_of_the_paper_needs_the_larger_standard_deviation():
    table = paper.paper()["table2"]
    decided = {}
    for task, mean in table["full_bert_mean"]["value"].items():
        full = exactly(mean, table["full_bert_std"]["value"][task])
        ticket = "f(m_IMP,theta0)"
        sub = exactly(table[f"{ticket}_mean"]["value"][task], table[f"{ticket}_std"]["value"][task])
        decided[task] = matching.paper_rules(sub, full)
    assert all(v["within_sd_max"] for v in decided.values())
    assert {task for task, v in decided.items() if not v["within_sd_full"]} == {
        "mrpc",
        "sst2",
        "cola",
        "mlm",
    }


def test_one_seed_has_no_standard_deviation():
    decided = matching.paper_rules({1: 80.0}, {1: 81.0})
    assert decided == {"strict": False, "within_sd_full": None, "within_sd_max": None}
    assert set(matching.paper_rules({}, {1: 81.0}).values()) == {None}


def test_a_tie_matches_in_any_order_of_summation():
    assert matching.paper_rules([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])["strict"] is True


@pytest.mark.parametrize(
    ("decided", "text"),
    [
        ((False, True, True), "within_sd_full, within_sd_max"),
        ((False, None, None), "none"),
        ((None, None, None), "undecided"),
    ],
)
def test_the_papers_rules_as_text(decided, text):
    assert matching.rules_text(dict(zip(matching.RULES, decided, strict=True))) == text


@pytest.mark.parametrize(
    ("number", "text"), [(-1.2, "−1.20"), (10.0, "+10.00"), (-0.001, "0.00"), (math.nan, "missing")]
)
def test_differences_have_a_sign(number, text):
    assert matching.signed(number) == text


def test_a_verdict_is_described_with_its_numbers_and_the_papers_rules():
    sub = {1: 82.9, 2: 85.1, 3: 86.1}
    (v,) = noninferiority.correct([noninferiority.verdict(sub, FULL, 1.0, paired=True)])
    lines = matching.describe(v, sub, FULL).splitlines()
    said = {line[:17].strip(): line[18:] for line in lines}
    assert said["subnetwork"] == "84.70 ± 1.64 (n = 3)"
    assert said["full network"] == "84.67 ± 1.53 (n = 3)"
    assert said["answer"] == "matches" and said["further seeds"] == "0"
    # mean 1/30 and sd 0.11547 of three differences: ± 2.920 (90 %) or 4.303 (95 %) × 0.0667
    assert said[""] == (
        "difference +0.03, 90 % interval [−0.16, +0.23], δ = 1, p 0.002, Holm p 0.002, n = 3 pairs"
    )
    assert said["95 % interval"] == "[−0.25, +0.32]"
    assert said["the paper's rules"] == "strict, within_sd_full, within_sd_max"


def test_a_loss_is_described_by_the_p_of_worse():
    sub = {seed: score - 5 - 0.1 * seed for seed, score in FULL.items()}
    (v,) = noninferiority.correct([noninferiority.verdict(sub, FULL, 1.0, paired=True)])
    text = matching.describe(v, sub, FULL)
    assert "worse\n" in text and "p <0.001 (worse), Holm p <0.001 (worse)" in text
    assert text.endswith("none")


def test_what_cannot_be_tested_is_undecided_with_the_reason():
    v = noninferiority.verdict([1.0], [1.0, 2.0], None)
    text = matching.describe(v, [1.0], [1.0, 2.0])
    assert "undecided: 1 seed a side, and a test needs 3" in text and "δ not given" in text
    assert "interval —" in text and "p —, Holm p —" in text
