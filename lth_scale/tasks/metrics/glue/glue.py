"""GLUE's metrics (Wang et al. 2019, arXiv:1804.07461, Table 1), by scikit-learn and scipy."""

import math
from functools import partial

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def defined(correlation, references, predictions) -> float:
    """The correlation, or 0.0 if undefined: fewer than two distinct values, or a non-finite one."""
    if min(len(set(predictions)), len(set(references))) < 2:
        return 0.0
    result = correlation(predictions, references)
    value = float(getattr(result, "statistic", result))  # scipy returns a p-value too
    return value if math.isfinite(value) else 0.0


SCORES = {"pearson": partial(defined, pearsonr), "spearman": partial(defined, spearmanr)}
METRICS = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0),
    "matthews_correlation": partial(defined, matthews_corrcoef),
    **SCORES,
}


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
        return {name: float(METRICS[name](references, predictions)) for name in names}
