"""Accuracy: which fraction of the predictions is right."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score

CLASS = datasets.Value("int64")


class Accuracy(evaluate.Metric):
    """compute(predictions=[int], references=[int]) → {"accuracy": fraction}."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": CLASS, "references": CLASS})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}
