"""What the families of tasks share: the `Task` that training sees, and loading a model with its head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Batch = dict[str, Tensor]


@dataclass
class Task:
    """A model with its head, its data, and how to score it.

    train, validation: encoded rows. collate: rows → tensors of one batch, for either.
    loss(model, batch) → (scalar loss, outputs); outputs is one tensor, and a softmax goes over its last dimension:
    GLUE (n, classes), MLM (masked tokens, vocabulary), SQuAD (n, 2, length), the latter two fp32 and all of them
    finite. rows(outputs, batch) → float64 array (n, columns), the loss last, which evaluation stacks over all batches
    and hands to `score` → {metric: value}. The first metric stands for the task. grouped: batch rows of similar length.
    more: further validation rows, scored in the same way and reported as metric_name.
    prunable: the prunable set, as names in the base model. base_sha256: of the encoder's weights, see `base_digest`.
    remark: a line on what of the model is drawn, or nothing.
    """

    model: PreTrainedModel
    prunable: tuple[str, ...]
    base_sha256: str
    tokenizer: PreTrainedTokenizerBase
    revision: str
    train: Dataset
    validation: Dataset
    collate: Callable[[list[dict]], Batch]
    eval_collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    rows: Callable[[Tensor, Batch], numpy.ndarray]
    score: Callable[[numpy.ndarray], dict[str, float]]
    grouped: bool
    remark: str = ""
    more: dict[str, Dataset] = field(default_factory=dict)


def labelled(
    names: Sequence[str] = ("LABEL_0", "LABEL_1"), kind: str | None = None
) -> dict[str, Any]:
    """What a config says of a task's labels and kind of problem, instead of what it said for another task."""
    by_number = dict(enumerate(names))
    by_name = {name: number for number, name in by_number.items()}
    return {
        "num_labels": len(names),
        "id2label": by_number,
        "label2id": by_name,
        "problem_type": kind,
    }


def prediction_rows(logits: Tensor, labels: Tensor) -> numpy.ndarray:
    """float64 (n, 3): prediction, label and loss of each example.

    logits: (n, classes); labels: (n,). One class is regression: the prediction is the logit, the loss its squared
    error. Else they are the likeliest class and the cross-entropy.
    """
    logits = logits.detach().float()
    if logits.shape[1] == 1:
        predicted, losses = logits[:, 0], (logits[:, 0] - labels) ** 2
    else:
        predicted, losses = logits.argmax(-1), F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([predicted.double(), labels.double(), losses.double()], dim=1).cpu().numpy()


def prediction_scores(rows: numpy.ndarray, metric: Any) -> dict[str, float]:
    """What the `evaluate.Metric` makes of `prediction_rows`, and the mean `loss`."""
    predicted, labels, losses = rows.T
    return {
        **metric.compute(predictions=predicted, references=labels),
        "loss": float(losses.mean()),
    }
