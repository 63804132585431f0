"""example_scores.py: the same scores as the tasks' metrics, for resampled examples too."""

import numpy
import pytest
from scipy import stats

from lth_scale.science.example_scores import examples_of
from lth_scale.tasks.metrics.glue.glue import METRICS
from lth_scale.tasks.metrics.scores import SCORES

SEVERAL = ("multi_label_classification", "regression")


def classes(generator, n, count):
    labels = generator.integers(count, size=n).astype("int16")
    guesses = generator.integers(count, size=n).astype("int16")
    return {"label": labels, "prediction": numpy.where(generator.random(n) < 0.7, labels, guesses)}


def scores(generator, n):
    labels = generator.integers(6, size=n).astype("float32")  # with ties
    return {"label": labels, "prediction": (labels + generator.normal(size=n)).astype("float32")}


def resampled(examples, weights):
    return examples.score(weights, weights @ examples.parts)


@pytest.mark.parametrize(
    ("metric", "count"),
    [("accuracy", 3), ("f1", 2), ("matthews_correlation", 2), ("matthews_correlation", 4)],
)
def test_scores_of_classes_are_those_of_the_task(metric, count):
    generator = numpy.random.default_rng(0)
    arrays = classes(generator, 80, count)
    agree_with_the_task(generator, metric, arrays)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlations_are_those_of_the_task(metric):
    generator = numpy.random.default_rng(0)
    agree_with_the_task(generator, metric, scores(generator, 80))


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        *(("macro_f1", "single_label_classification"), ("mse", "regression")),
        *((name, kind) for kind in SEVERAL for name in SCORES[kind]),
    ],
)
def test_scores_of_own_data_are_those_of_the_task(metric, problem):
    generator = numpy.random.default_rng(0)
    if metric == "macro_f1" and problem not in SEVERAL:
        arrays = classes(generator, 80, 30)  # some classes are missing from some samples
    elif problem == "regression":
        one, other = scores(generator, 80), scores(generator, 80)
        arrays = {name: numpy.stack([one[name], other[name]], axis=1) for name in one}
    else:
        labels = generator.random((80, 4)) < [0.5, 0.3, 0.1, 0.02]
        noise = generator.random((80, 4)) < 0.2
        arrays = {"label": labels.astype("int8"), "prediction": (labels ^ noise).astype("int8")}
    agree_with_the_task(generator, metric, arrays, SCORES[problem])


def agree_with_the_task(generator, metric, arrays, scores_of=METRICS):
    examples = examples_of(arrays, metric)
    expected = scores_of[metric](arrays["label"], arrays["prediction"])
    assert examples.value == pytest.approx(expected)
    drawn = generator.integers(80, size=(5, 80))
    weights = numpy.stack([numpy.bincount(rows, minlength=80) for rows in drawn]).astype(float)
    expected = [scores_of[metric](arrays["label"][x], arrays["prediction"][x]) for x in drawn]
    assert resampled(examples, weights) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson", "spearman", "f1"])
def test_an_undefined_score_counts_as_0(metric):
    labels, constant = numpy.array([1, 0, 1, 0]), numpy.zeros(4)
    examples = examples_of({"label": labels, "prediction": constant}, metric)
    assert examples.value == 0
    varying = examples_of({"label": labels, "prediction": numpy.array([1, 0, 1, 1])}, metric)
    assert resampled(varying, numpy.array([[0.0, 4, 0, 0], [4, 0, 0, 0]]))[0] == 0


def test_the_questions_of_squad_are_averaged():
    f1, exact = numpy.array([0.5, 1, 0], "float32"), numpy.array([0, 1, 0], "int16")
    arrays = {"f1": f1, "exact_match": exact}
    assert examples_of(arrays, "f1").value == 0.5 and examples_of(arrays, "f1").right is None
    examples = examples_of(arrays, "exact_match")
    assert examples.value == pytest.approx(1 / 3) and [*examples.right] == [False, True, False]


def test_an_example_of_masked_language_modelling_is_a_block():
    arrays = {"correct": numpy.array([1, 6]), "masked": numpy.array([2, 8]), "loss": numpy.ones(2)}
    examples = examples_of(arrays, "accuracy")
    assert examples.value == 0.7 and examples.right is None and len(examples.rows) == 2
    assert [*resampled(examples, numpy.array([[2.0, 0], [0, 2]]))] == [0.5, 0.75]


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"prediction": numpy.ones(3)},
        {"prediction": numpy.ones(3), "label": numpy.ones(2)},
        {"prediction": numpy.ones((3, 2)), "label": numpy.ones((3, 2))},
        {"accuracy": numpy.ones(0)},
        {"accuracy": numpy.array(1.0)},
        {"correct": numpy.ones(3), "prediction": numpy.ones(3), "masked": numpy.ones(4)},
    ],
)
def test_arrays_that_do_not_determine_the_score_have_no_examples(arrays):
    assert examples_of(arrays, "accuracy") is None
    assert examples_of(arrays, "kappa") is None


def test_ranks_of_a_resample_are_those_of_its_repeated_examples():
    x, y = numpy.array([3.0, 1, 2, 2]), numpy.array([1.0, 2, 3, 1])
    times = numpy.array([2, 1, 3, 0])
    expected = stats.spearmanr(numpy.repeat(x, times), numpy.repeat(y, times)).statistic
    examples = examples_of({"prediction": x, "label": y}, "spearman")
    assert resampled(examples, times[None].astype(float)) == pytest.approx([expected])
