"""GLUE's metrics (Wang et al. 2019, arXiv:1804.07461, Table 1), computed by scikit-learn and scipy."""

import math

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

ACCURACY = ("sst2", "mnli", "mnli_mismatched", "mnli_matched", "qnli", "rte", "wnli", "hans")
ACCURACY_AND_F1 = ("mrpc", "qqp")
CONFIGS = (*ACCURACY, *ACCURACY_AND_F1, "cola", "stsb")


def correlation(kind, predictions, references) -> float:
    """kind(predictions, references), or 0.0 where it is undefined: fewer than two distinct values, or no number."""
    if min(len(set(predictions)), len(set(references))) < 2:
        return 0.0
    found = kind(predictions, references)
    value = float(getattr(found, "statistic", found))  # scipy's have more to say
    return value if math.isfinite(value) else 0.0


class Glue(evaluate.Metric):
    """compute(predictions=[…], references=[…]) → the metrics of the task that is the config's name.

    accuracy; accuracy and f1 (mrpc, qqp); matthews_correlation (cola), of integer classes. pearson and spearmanr
    (stsb), of floats. F1 and Matthews' correlation are scikit-learn's, 0.0 where undefined; so are the others.
    Raises ValueError for another config.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGS:
            raise ValueError(
                f"config {self.config_name!r} is none of GLUE's; give one of {', '.join(CONFIGS)}"
            )
        value = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        if self.config_name == "stsb":
            kinds = {"pearson": pearsonr, "spearmanr": spearmanr}
            return {
                name: correlation(kind, predictions, references) for name, kind in kinds.items()
            }
        if self.config_name == "cola":
            return {"matthews_correlation": correlation(matthews_corrcoef, predictions, references)}
        scores = {"accuracy": float(accuracy_score(references, predictions))}
        if self.config_name in ACCURACY_AND_F1:
            scores["f1"] = float(f1_score(references, predictions, zero_division=0))
        return scores
