"""Metrics of the user's own tasks, by name: those of the package, and any of `evaluate`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import numpy
from numpy import ndarray
from sklearn.metrics import f1_score, mean_absolute_error, mean_squared_error

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.tasks.libraries import quiet
from lth_scale.tasks.metrics.glue.glue import METRICS as GLUE

Scorer = Callable[[ndarray, ndarray], float]  # (labels, predictions) → score


def over_outputs(score: Scorer, labels: ndarray, predictions: ndarray) -> float:
    """The mean of a score of numbers over several outputs, (n,) or (n, outputs)."""
    if labels.ndim == 1:
        return float(score(labels, predictions))
    return float(numpy.mean([score(*pair) for pair in zip(labels.T, predictions.T, strict=True)]))


# By the problem_type of a config; the first two are reported unless --metric_name names another.
SCORES: Mapping[str, Mapping[str, Scorer]] = {
    "single_label_classification": {
        "accuracy": GLUE["accuracy"],
        "macro_f1": partial(f1_score, average="macro", zero_division=0),
        "matthews_correlation": GLUE["matthews_correlation"],
        "f1": GLUE["f1"],
    },
    "multi_label_classification": {
        "micro_f1": partial(f1_score, average="micro", zero_division=0),
        "macro_f1": partial(f1_score, average="macro", zero_division=0),
        "accuracy": GLUE["accuracy"],
    },
    "regression": {
        "pearson": partial(over_outputs, GLUE["pearson"]),
        "spearman": partial(over_outputs, GLUE["spearman"]),
        "mse": partial(over_outputs, mean_squared_error),
        "mae": partial(over_outputs, mean_absolute_error),
    },
}
EVALUATE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "multi_label_classification": {"average": "micro"}
}


def metrics_of(problem_type: str, name: str | None) -> dict[str, Scorer]:
    """The metrics of a kind of problem, the one that --metric_name names first. Raises BadInput."""
    known = SCORES[problem_type]
    usual = dict([*known.items()][:2])
    if name is None:
        return usual
    if name in known:
        return {name: partial(_of_these_labels, name, known[name]), **usual}
    return {Path(name).stem: evaluate_metric(problem_type, name), **usual}


def evaluate_metric(problem_type: str, name: str) -> Scorer:
    """A metric of `evaluate`: a local path, or a name that it can find. Raises BadInput."""
    config = "multilabel" if problem_type == "multi_label_classification" else None
    try:
        with quiet():
            metric = evaluate.load(name, config, keep_in_memory=True)
    except Exception as error:  # raises many kinds
        others = ", ".join(SCORES[problem_type])
        raise BadInput(
            f"--metric_name {name}: cannot be loaded ({first_line(error)}); use a local path, or "
            f"one of {others}, which need no network"
        ) from None
    options = EVALUATE_OPTIONS.get(problem_type, {})
    score = partial(_compute, metric, Path(name).stem, options)
    return partial(_of_these_labels, name, score)


def _compute(
    metric: Any, name: str, options: Mapping[str, Any], labels: ndarray, predictions: ndarray
) -> float:
    """The value of the metric's own name, or its only one. Raises ValueError if there are more."""
    scores = metric.compute(predictions=predictions, references=labels, **options)
    if name not in scores and len(scores) != 1:
        raise ValueError(f"it has several values, {', '.join(scores)}")
    return float(scores.get(name, next(iter(scores.values()))))


def _of_these_labels(name: str, score: Scorer, labels: ndarray, predictions: ndarray) -> float:
    """The score. Raises BadInput if the metric is not one of such labels."""
    try:
        return float(score(labels, predictions))
    except Exception as error:  # may be a user's code
        raise BadInput(
            f"--metric_name {name}: cannot score these labels ({first_line(error)}); use another"
        ) from None
