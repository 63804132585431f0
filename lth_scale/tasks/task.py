"""The `Task` protocol: what training, evaluation and the speed check need of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.distributed import compat
from lth_scale.tasks.trivial import Trivial

Batch = dict[str, Tensor]
Row = dict[str, Any]  # one example: column → value


class Task(Protocol):
    """A model with its head, its data, and how to score it.

    A task may also be a `KeepsPredictions` and a `KnowsTrivialScores`.

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


@dataclass(frozen=True)
class Predictions:
    """The results of one evaluation, example by example.

    arrays: by name; integers of at most 32 bits or float32, with one entry for each example (or for
    each word of all examples) along the first dimension. is_constant: whether the network gave one
    answer to all of two or more examples.
    """

    arrays: Mapping[str, numpy.ndarray]
    is_constant: bool


@runtime_checkable
class KeepsPredictions(Protocol):
    """A task whose evaluations keep the result of each example, in predictions.safetensors.

    Optional: no class needs to inherit from it, and without the method nothing is kept.
    """

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """The results of the examples of one split, in the order of its rows.

        table: the concatenated `rows` of all batches, as `score` takes them. rows: the split, one
        of `validation` and `more`. order: int (len(rows),), the number of the row at each position
        of the batches: sorted by length if the task is `grouped`, otherwise 0, 1, 2, …
        """


@runtime_checkable
class KnowsTrivialScores(Protocol):
    """A task that can tell what predictors score which do not read the input. Optional."""

    def trivial(self) -> Trivial:
        """Scores on the validation data by predictor and metric, named as by `score`.

        Names of further validation splits have their suffix. Called once in a run.
        """


@runtime_checkable
class PredictsTest(Protocol):
    """A task with rows that are predicted once, by the dense network and the last ticket. Optional.

    test: encoded rows, with labels that are not used; None if there are none. test_labels: of each
    row as text, or () if they are unknown.
    """

    test: Dataset | None
    test_labels: Sequence[str]

    def answers(self, table: numpy.ndarray, order: numpy.ndarray) -> list[str]:
        """The prediction of each test row as text; the arguments are those of `predictions`."""


@runtime_checkable
class RecordsFacts(Protocol):
    """A task that says what it took from the user's data, for arguments.json. Optional."""

    facts: Mapping[str, Any]


def in_row_order(table: numpy.ndarray, order: numpy.ndarray) -> numpy.ndarray:
    """Return a table with one line for each row of a split in the order of these rows.

    order: as in `KeepsPredictions.predictions`.
    """
    restored = numpy.empty_like(table)
    restored[order] = table
    return restored


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
    """The data of a task. Subclasses add `loss`, `rows` and `score` (see `Task`).

    Optionally also `predictions` and `trivial` (see `KeepsPredictions`, `KnowsTrivialScores`).
    """

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
