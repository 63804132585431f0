"""The `Task` protocol: what training, evaluation and the speed check need of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.distributed import compat

Batch = dict[str, Tensor]
Row = dict[str, Any]  # one example: column → value


class Task(Protocol):
    """A model with its head, its data, and how to score it.

    model: in fp32, on the CPU until training starts. fresh: names in the model of parameters that
    no checkpoint provided. remark: one line about them, or "". train, validation: encoded rows.
    more: additional validation splits, by the suffix of their metrics. grouped: whether batches
    hold rows of similar length. revision: the model's commit on the Hub, or "".
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fresh: frozenset[str]
    remark: str
    train: Dataset
    validation: Dataset
    more: Mapping[str, Dataset]
    grouped: bool

    @property
    def revision(self) -> str: ...

    def collate(self, rows: list[Row]) -> Batch:
        """Training rows as the tensors of one batch."""

    def eval_collate(self, rows: list[Row]) -> Batch:
        """Validation rows as the tensors of one batch."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of one batch.

        Returns (scalar loss, outputs). The last dimension of outputs is the one that a softmax
        covers: GLUE (n, classes); MLM (masked tokens, vocabulary) and SQuAD (n, 2, length), both
        finite and in fp32.
        """

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """Results of each example, float64 (n, columns), the loss last; evaluation stacks them."""

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """Metrics of the concatenated `rows` of a split; the first one stands for the task."""


@dataclass(kw_only=True)
class LoadedModel:
    """A model with its head and its tokenizer; the fields are those of `Task`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fresh: frozenset[str]
    remark: str

    @property
    def revision(self) -> str:
        """The model's commit on the Hub, or "" if it is local."""
        return compat.commit_hash(self.model.config)


@dataclass(kw_only=True)
class LoadedTask(LoadedModel):
    """The data of a task. Subclasses add `loss`, `rows` and `score` (see `Task`)."""

    train: Dataset
    validation: Dataset
    collator: Callable[[list[Row]], Batch]
    more: Mapping[str, Dataset] = field(default_factory=dict)
    grouped: bool = True

    def collate(self, rows: list[Row]) -> Batch:
        """Rows as tensors, padded to one length."""
        return self.collator(rows)

    eval_collate = collate


def label_config(
    labels: Sequence[str] = ("LABEL_0", "LABEL_1"), problem_type: str | None = None
) -> dict[str, Any]:
    """Config fields for the labels of a task; they replace those of the checkpoint's own task."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": problem_type,
    }
