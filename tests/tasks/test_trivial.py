"""trivial.py: baselines by hand."""

import math

import numpy
import pytest

from lth_scale.tasks.trivial import constant_answer_scores, trivial_scores, unigram_scores

LABELS = numpy.array([1] * 68 + [0] * 32)


def test_the_best_constant_is_the_majority_class_under_accuracy_and_f1():
    told = trivial_scores(LABELS, 2, ("accuracy", "f1"))
    # always 1: precision 0.68, recall 1
    assert told["constant"] == pytest.approx({"accuracy": 0.68, "f1": 2 * 0.68 / 1.68})
    assert told["chance"]["accuracy"] == 0.5
    assert told["chance"]["f1"] == pytest.approx(2 * 0.68 * 0.5 / (0.68 + 0.5), abs=0.05)


def test_f1_has_its_own_best_constant():
    told = trivial_scores(1 - LABELS, 2, ("accuracy", "f1"))
    # accuracy: always 0; F1: always 1
    assert told["constant"] == pytest.approx({"accuracy": 0.68, "f1": 2 * 0.32 / 1.32})


def test_a_constant_has_no_correlation():
    assert trivial_scores(LABELS, 2, ("matthews_correlation",))["constant"] == {
        "matthews_correlation": 0.0
    }
    scores = numpy.array([0.0, 2.5, 5.0])
    assert trivial_scores(scores, 1, ("pearson", "spearman")) == {
        "constant": {"pearson": 0.0, "spearman": 0.0}
    }


def test_three_classes():
    told = trivial_scores(numpy.array([0, 1, 2, 2]), 3, ("accuracy",))
    assert told["constant"] == {"accuracy": 0.5}


def test_the_unigram_model_of_masked_tokens():
    train, labels = numpy.array([[0, 0, 1, 2]]), numpy.array([0, 1, 1, 1])
    told = unigram_scores(train, labels, 4)
    assert told["constant"] == {"accuracy": 0.75} and told["unigram"]["accuracy"] == 0.25
    # counts with add-one smoothing: 3, 2, 2, 1 of 8
    loss = -(math.log(3 / 8) + 3 * math.log(2 / 8)) / 4
    assert told["unigram"]["loss"] == pytest.approx(loss)
    assert told["chance"] == pytest.approx({"accuracy": 0.25, "loss": math.log(4)})


def test_the_best_constant_answer():
    answers = [["Paris"], ["the Paris", "London"], ["Rome"], ["in Paris"]]
    told = constant_answer_scores(answers)
    assert told["constant"]["exact_match"] == 0.5
    assert told["constant"]["f1"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
