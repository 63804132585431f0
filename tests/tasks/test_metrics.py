"""tasks/metrics: hand-computed and published values, undefined cases, loading without a network."""

import multiprocessing
import socket
import sys

import evaluate
import numpy
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from lth_scale.config.errors import BadInput
from lth_scale.tasks import metrics


def glue(config: str, predictions, references) -> dict[str, float]:
    return metrics.load_metric("glue", config).compute(
        predictions=predictions, references=references
    )


def squad(*pairs: tuple[str, list[str]]) -> tuple[float, float]:
    """(exact match, F1) of predictions with their gold answers."""
    predictions, references = map(list, zip(*pairs, strict=True))
    scores = metrics.load_metric("squad").compute(predictions=predictions, references=references)
    return scores["exact_match"], pytest.approx(scores["f1"])


def test_accuracy_is_the_fraction_of_correct_predictions():
    assert glue("accuracy", [0, 1, 2, 2, 9], [0, 1, 2, 1, 0]) == {"accuracy": 0.6}
    assert glue("accuracy", [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75}


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    scores = glue("accuracy+f1", [1, 1, 0, 0, 1], [1, 0, 1, 0, 1])  # precision 2/3, recall 2/3
    assert scores == {"accuracy": 0.6, "f1": pytest.approx(2 / 3)}
    scores = glue("accuracy+f1", [0, 0, 0], [0, 1, 1])
    assert scores == {"accuracy": pytest.approx(1 / 3), "f1": 0.0}


def test_matthews_correlation():
    def score(predictions: list[int], references: list[int]) -> float:
        return glue("matthews_correlation", predictions, references)["matthews_correlation"]

    # (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)) with TP 3, TN 2, FP 1, FN 2
    expected = (3 * 2 - 1 * 2) / (4 * 5 * 3 * 4) ** 0.5
    assert score([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1]) == pytest.approx(expected)
    assert score([1, 0, 1, 1], [1, 1, 1, 0]) == pytest.approx(-1 / 3)  # scikit-learn's example
    assert score([1, 1, 1], [1, 0, 1]) == 0.0


def test_correlations():
    assert glue("pearson+spearman", [0.0, 1, 2, 3, 4, 5], [0.0, 1, 2, 3, 4, 5]) == pytest.approx(
        {"pearson": 1, "spearman": 1}
    )
    # centred (−2, −1, 0, 1, 2) and (−1, −3, −1, 1, 4): 14 / √(10 · 28)
    # ranks (1, 2, 3, 4, 5) and (2.5, 1, 2.5, 4, 5)
    scores = glue("pearson+spearman", [1.0, 2, 3, 4, 5], [2.0, 0, 2, 4, 7])
    assert scores == pytest.approx({"pearson": 14 / 280**0.5, "spearman": 8 / 95**0.5})


def test_random_vectors_score_as_in_scikit_learn_and_scipy():
    generator = numpy.random.default_rng(0)
    truth, guess = generator.integers(0, 2, 60), generator.integers(0, 2, 60)
    assert glue("accuracy+f1", guess, truth)["f1"] == f1_score(truth, guess)
    assert glue("matthews_correlation", guess, truth)["matthews_correlation"] == matthews_corrcoef(
        truth, guess
    )
    x, y = generator.random(60), generator.random(60)
    assert glue("pearson+spearman", x, y) == {
        "pearson": pearsonr(x, y).statistic,
        "spearman": spearmanr(x, y).statistic,
    }


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([2.0, 2, 2], [1.0, 2, 3]),
        ([1.0, 2, 3], [2.0, 2, 2]),
        ([1.0], [1.0]),
        ([float("nan"), 1, 2], [1.0, 2, 3]),
    ],
)
def test_an_undefined_correlation_is_zero(predictions, references, recwarn):
    assert glue("pearson+spearman", predictions, references) == {"pearson": 0.0, "spearman": 0.0}
    assert not [warning for warning in recwarn if "onstant" in str(warning.message)]


@pytest.mark.parametrize(
    ("predictions", "references"), [([1, 1], [1, 1]), ([0, 0], [0, 1]), ([1], [1])]
)
def test_an_undefined_matthews_correlation_is_zero_without_a_warning(
    predictions, references, recwarn
):
    assert glue("matthews_correlation", predictions, references) == {"matthews_correlation": 0.0}
    assert not [warning for warning in recwarn if "label" in str(warning.message)]


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"'bleu'.*spearman"):
        metrics.load_metric("glue", "accuracy+bleu")


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("1976", ["1976"], 100, 100),
        ("The Eiffel Tower!", ["eiffel tower"], 100, 100),
        ("an  apple,\ta\u00a0day", ["Apple day"], 100, 100),
        ("U.S.", ["us"], 100, 100),
        ("theatre", ["atre"], 0, 0),
        ("the cat sat", ["cat sat down"], 0, 80),
        ("cat cat", ["cat"], 0, 200 / 3),
        ("Denver Broncos", ["Broncos", "the Denver Broncos"], 100, 100),
        ("in Santa Clara", ["Santa Clara, California", "Levi's Stadium"], 0, 200 / 3),
        ("", ["something"], 0, 0),
        ("the", ["something"], 0, 0),
        ("dog", ["cat"], 0, 0),
    ],
)
def test_squad_scores_the_best_answer_after_normalisation(prediction, answers, exact, f1):
    assert squad((prediction, answers)) == (exact, f1)


def test_squad_averages_over_questions():
    assert squad(("cat", ["cat"]), ("the cat sat", ["cat sat down"])) == (50, 90)
    right, wrong = (("cat", ["cat"]), ("dog", ["ran", "dog"])), (("cat", ["dog"]), ("dog", ["cat"]))
    assert squad(right[0], *wrong, right[1]) == (50, 50)


def load_afresh(cache, barrier, results) -> None:
    """Load the metrics with an empty modules cache and no network, when all processes are ready."""
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]
    sys.path.remove(str(evaluate.config.HF_MODULES_CACHE))
    evaluate.config.HF_MODULES_CACHE = evaluate.config.HF_METRICS_CACHE = cache
    connected: list[object] = []
    socket.socket.connect = lambda self, address: connected.append(address)
    barrier.wait(60)
    scores = [glue("accuracy", [1, 0], [1, 1])["accuracy"] for _ in range(2)]
    module = sys.modules[type(metrics.load_metric("squad")).__module__]
    results.put((scores, str(cache) in module.__file__, connected))


def test_several_processes_load_at_once_into_an_empty_cache_without_a_network(tmp_path, capfd):
    metrics.load_metric("glue", "accuracy")  # the children undo what this leaves in the process
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    children = [
        context.Process(target=load_afresh, args=(tmp_path / "new", barrier, results))
        for _ in range(3)
    ]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [([0.5, 0.5], True, [])] * 3
    for child in children:
        child.join(60)
    assert capfd.readouterr() == ("", "")


def test_a_modules_cache_that_is_not_writable_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "file" / "modules")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(BadInput, match="HF_MODULES_CACHE"):
        metrics.load_metric("glue", "accuracy")
