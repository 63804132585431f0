"""The metrics, as `evaluate` modules inside the package: loading them needs no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from lth_scale.config.errors import BadInput

ROUNDING = 1e-5  # by which fp32 predictions of equal inputs may differ between batches


def load_metric(name: str, config: str | None = None) -> Any:
    """Load an `evaluate.Metric` of this package: glue (config: metric names joined by +) or squad.

    Needs no network and may run in several processes at once: `evaluate` copies the module, under a
    lock, into its modules cache (HF_MODULES_CACHE) and imports it from there. Raises BadInput if
    that cache is not writable.
    """
    try:
        return evaluate.load(str(Path(__file__).parent / name), config, keep_in_memory=True)
    except OSError as error:
        raise BadInput(
            f"HF_MODULES_CACHE {evaluate.config.HF_MODULES_CACHE}: cannot store the metric {name} "
            f"({error.strerror or error}); set it to a writable directory"
        ) from error


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


def kept_predictions(rows: numpy.ndarray, is_regression: bool) -> dict[str, numpy.ndarray]:
    """`prediction` and `label` of `prediction_rows`: int16 classes, or float32 of a regression."""
    kind = numpy.float32 if is_regression else numpy.int16
    return {name: rows[:, i].astype(kind) for i, name in enumerate(("prediction", "label"))}


def is_constant(predictions: numpy.ndarray) -> bool:
    """True if two or more predictions are equal: exactly if integers, else up to ROUNDING."""
    is_float = numpy.issubdtype(predictions.dtype, numpy.floating)
    tolerance = ROUNDING if is_float else 0
    constant = numpy.allclose(predictions, predictions[:1], rtol=tolerance, atol=tolerance)
    return len(predictions) > 1 and constant


def prediction_scores(rows: numpy.ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """The named metrics of `prediction_rows`, and the mean `loss`."""
    predictions, labels, losses = rows.T
    metric = load_metric("glue", "+".join(metrics))
    scores = metric.compute(predictions=predictions, references=labels)
    return {**scores, "loss": float(losses.mean())}
