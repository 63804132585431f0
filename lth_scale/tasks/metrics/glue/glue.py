"""GLUE's metrics (Wang et al. 2019, arXiv:1804.07461, Table 1), by scikit-learn and scipy."""

import math

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def accuracy(predictions, references) -> float:
    """Fraction of correct predictions."""
    return float(accuracy_score(references, predictions))


def f1(predictions, references) -> float:
    """F1 of class 1, or 0.0 if it is undefined."""
    return float(f1_score(references, predictions, zero_division=0))


def matthews_correlation(predictions, references) -> float:
    """Matthews' correlation of classes."""
    return defined(matthews_corrcoef, predictions, references)


def pearson(predictions, references) -> float:
    """Pearson's correlation of scores."""
    return defined(lambda *values: pearsonr(*values).statistic, predictions, references)


def spearman(predictions, references) -> float:
    """Spearman's rank correlation of scores."""
    return defined(lambda *values: spearmanr(*values).statistic, predictions, references)


def defined(correlation, predictions, references) -> float:
    """The correlation, or 0.0 if undefined: fewer than two distinct values, or a non-finite one."""
    if min(len(set(predictions)), len(set(references))) < 2:
        return 0.0
    value = float(correlation(predictions, references))
    return value if math.isfinite(value) else 0.0


CLASSES = {"accuracy": accuracy, "f1": f1, "matthews_correlation": matthews_correlation}
SCORES = {"pearson": pearson, "spearman": spearman}
METRICS = CLASSES | SCORES


class Glue(evaluate.Metric):
    """compute(predictions=[…], references=[…]) → {metric: value}.

    The config names one metric, or several joined by +: accuracy, f1 and matthews_correlation of
    integer classes; pearson and spearman of floats. Raises ValueError for any other name.
    """

    def _info(self) -> evaluate.MetricInfo:
        names = self.config_name.split("+")
        if unknown := {*names} - METRICS.keys():
            raise ValueError(f"unknown metric {min(unknown)!r}; use one of {', '.join(METRICS)}")
        value = datasets.Value("float64" if {*names} <= SCORES.keys() else "int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        names = self.config_name.split("+")
        return {name: METRICS[name](predictions, references) for name in names}
