"""Results per example and their metrics, for tasks that predict a class or a number."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from lth_scale.tasks.metrics import load_metric


def prediction_rows(logits: Tensor, labels: Tensor) -> numpy.ndarray:
    """Prediction, label and loss of each example, float64 (n, 3).

    logits: (n, classes); labels: (n,). With one class (regression) the prediction is the logit and
    the loss its squared error; otherwise they are the most likely class and the cross-entropy.
    """
    logits = logits.detach().float()
    if logits.shape[1] == 1:
        predictions = logits[:, 0]
        losses = (predictions - labels) ** 2
    else:
        predictions = logits.argmax(-1)
        losses = F.cross_entropy(logits, labels, reduction="none")
    columns = [predictions.double(), labels.double(), losses.double()]
    return torch.stack(columns, dim=1).cpu().numpy()


def prediction_scores(rows: numpy.ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """The named metrics of `prediction_rows`, and the mean `loss`."""
    predictions, labels, losses = rows.T
    metric = load_metric("glue", "+".join(metrics))
    scores = metric.compute(predictions=predictions, references=labels)
    return {**scores, "loss": float(losses.mean())}
