"""What a network predicts of a text: a class, any number of labels, or numbers.

Each kind says how labels are read, how outputs become results, and what predicts without reading.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from lth_scale.config.arguments import Training
from lth_scale.tasks import data_warnings
from lth_scale.tasks.labels import Labels
from lth_scale.tasks.metrics import prediction_rows
from lth_scale.tasks.metrics.scores import Scorer
from lth_scale.tasks.registry import metric_named
from lth_scale.tasks.sources import Source
from lth_scale.tasks.trivial import DRAWS, best_of

MOST_CLASSES = 2**15  # that int16 holds
CANDIDATES = 20  # classes that may be the best constant


@dataclass(frozen=True, kw_only=True)
class Targets(ABC):
    """Results of examples are rows: the predictions, the labels, and last the loss.

    labels: the names of the classes, of the labels or of the numbers, in the order of the outputs.
    metrics: (labels, predictions) → score, by name; the first one compares networks.
    """

    problem_type: ClassVar[str]  # as transformers' config has it
    labels: tuple[str, ...]
    metrics: Mapping[str, Scorer]

    @property
    def width(self) -> int:
        """The number of predictions of an example."""
        return len(self.labels)

    @property
    def unlabelled(self) -> Any:
        """A label as `read` returns them, of a row that has none."""
        return 0.0 if self.width == 1 else [0.0] * self.width

    @abstractmethod
    def read(self, labels: Labels, source: Source) -> list[Any]:
        """The labels of a source as the model's loss takes them. Raises BadInput."""

    @abstractmethod
    def warn(self, args: Training, split: str, labels: list[Any]) -> None:
        """Warn about labels of a split, as `read` returns them, that say little or nothing."""

    @abstractmethod
    def rows(self, logits: Tensor, labels: Tensor) -> ndarray:
        """Results of the examples of a batch, float64 (n, 2 × width + 1)."""

    @abstractmethod
    def values(self, columns: ndarray) -> ndarray:
        """Predictions or labels of results, float64 (n, width), as metrics take them."""

    @abstractmethod
    def kept(self, values: ndarray) -> ndarray:
        """Values as they are written to disk."""

    @abstractmethod
    def text(self, value: ndarray) -> str:
        """The value of one example as text."""

    @abstractmethod
    def constants(self, labels: ndarray) -> Iterator[ndarray]:
        """Values for all examples, among which is the constant that scores best."""

    def drawn(self, labels: ndarray, generator: numpy.random.Generator) -> ndarray | None:
        """Values at random, all equally likely; None if there is no such thing."""
        return None

    def pair(self, rows: ndarray) -> tuple[ndarray, ndarray]:
        """The predictions and the labels of results, as values."""
        return self.values(rows[:, : self.width]), self.values(rows[:, self.width : -1])

    def score(self, predictions: ndarray, labels: ndarray) -> dict[str, float]:
        """The metrics of values."""
        return {name: float(metric(labels, predictions)) for name, metric in self.metrics.items()}

    def trivial(self, labels: ndarray) -> dict[str, Mapping[str, float]]:
        """The scores of the best constant and, if there is one, of chance."""
        constants = [numpy.broadcast_to(value, labels.shape) for value in self.constants(labels)]
        less_is_better = {name for name in self.metrics if metric_named(name).sign < 0}
        scored = [self.score(value, labels) for value in constants]
        scores = {"constant": best_of(scored, less_is_better)}
        generator = numpy.random.default_rng(0)
        draws = [self.drawn(labels, generator) for _ in range(DRAWS)]
        drawn = [self.score(values, labels) for values in draws if values is not None]
        if drawn:
            scores["chance"] = {
                name: float(numpy.mean([each[name] for each in drawn])) for name in self.metrics
            }
        return {**scores}


@dataclass(frozen=True, kw_only=True)
class OneClass(Targets):
    """One of several classes: int64 (n,), on disk int16, or int32 if there are too many."""

    problem_type = "single_label_classification"

    @property
    def width(self) -> int:
        """One class."""
        return 1

    @property
    def unlabelled(self) -> int:
        """The first class."""
        return 0

    def read(self, labels: Labels, source: Source) -> list[Any]:
        return [row[0] for row in labels.numbered(source, self.labels)]

    def warn(self, args: Training, split: str, labels: list[Any]) -> None:
        data_warnings.warn_about_labels(args, split, labels, len(self.labels), self.labels)

    def rows(self, logits: Tensor, labels: Tensor) -> ndarray:
        return prediction_rows(logits, labels)

    def values(self, columns: ndarray) -> ndarray:
        return columns[:, 0].astype(numpy.int64)

    def kept(self, values: ndarray) -> ndarray:
        return values.astype(numpy.int16 if len(self.labels) <= MOST_CLASSES else numpy.int32)

    def text(self, value: ndarray) -> str:
        return self.labels[int(value)]

    def constants(self, labels: ndarray) -> Iterator[ndarray]:
        """The most frequent classes, and the rarest one, for metrics that less is better of."""
        order = numpy.argsort(-numpy.bincount(labels, minlength=len(self.labels)), kind="stable")
        yield from numpy.unique([*order[:CANDIDATES], order[-1]])

    def drawn(self, labels: ndarray, generator: numpy.random.Generator) -> ndarray:
        return generator.integers(len(self.labels), size=len(labels))


@dataclass(frozen=True, kw_only=True)
class SeveralLabels(Targets):
    """Any number of labels, each predicted if its probability is above 0.5: int8 (n, labels)."""

    problem_type = "multi_label_classification"

    @property
    def unlabelled(self) -> list[float]:
        """No label."""
        return [0.0] * self.width

    def read(self, labels: Labels, source: Source) -> list[Any]:
        rows = numpy.zeros((len(source), self.width), dtype=numpy.float32)
        for row, numbers in zip(rows, labels.numbered(source, self.labels), strict=True):
            row[numbers] = 1
        return [*rows]

    def warn(self, args: Training, split: str, labels: list[Any]) -> None:
        counts = numpy.sum(labels, axis=0)
        if len(missing := numpy.flatnonzero(counts == 0)):
            data_warnings.warn_about_absent(
                args, split, len(labels), [self.labels[i] for i in missing]
            )

    def rows(self, logits: Tensor, labels: Tensor) -> ndarray:
        logits, labels = logits.detach().float(), labels.float()
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        return _rows((logits > 0).double(), labels, losses)

    def values(self, columns: ndarray) -> ndarray:
        return columns.astype(numpy.int8)

    def kept(self, values: ndarray) -> ndarray:
        return values

    def text(self, value: ndarray) -> str:
        return "; ".join(self.labels[i] for i in numpy.flatnonzero(value))

    def constants(self, labels: ndarray) -> Iterator[ndarray]:
        """The most frequent labels: one, as many as are best under micro-F1, and all."""
        totals = labels.sum(axis=0, dtype=int)
        order, k = numpy.argsort(-totals, kind="stable"), numpy.arange(1, self.width + 1)
        micro_f1 = 2 * numpy.cumsum(totals[order]) / (k * len(labels) + max(1, totals.sum()))
        for count in sorted({1, int(micro_f1.argmax()) + 1, self.width}):
            yield numpy.isin(numpy.arange(self.width), order[:count]).astype(numpy.int8)

    def drawn(self, labels: ndarray, generator: numpy.random.Generator) -> ndarray:
        return generator.integers(2, size=labels.shape, dtype=numpy.int8)


@dataclass(frozen=True, kw_only=True)
class Numbers(Targets):
    """One number or several: float64, (n,) or (n, numbers), on disk float32."""

    problem_type = "regression"

    def read(self, labels: Labels, source: Source) -> list[Any]:
        rows = labels.numbers(source)
        return [row[0] for row in rows] if self.width == 1 else rows

    def warn(self, args: Training, split: str, labels: list[Any]) -> None:
        answers = [str(label) for label in labels]
        data_warnings.warn_if_constant(args, split, answers, len(labels), "score")

    def rows(self, logits: Tensor, labels: Tensor) -> ndarray:
        logits, labels = logits.detach().float(), labels.float().reshape(logits.shape)
        return _rows(logits, labels, ((logits - labels) ** 2).mean(1))

    def values(self, columns: ndarray) -> ndarray:
        return columns[:, 0] if self.width == 1 else columns

    def kept(self, values: ndarray) -> ndarray:
        return values.astype(numpy.float32)

    def text(self, value: ndarray) -> str:
        return "; ".join(f"{number:.6g}" for number in numpy.atleast_1d(value))

    def constants(self, labels: ndarray) -> Iterator[ndarray]:
        """The mean, which is best for squared errors, and the median, for absolute ones."""
        yield labels.mean(axis=0)
        yield numpy.median(labels, axis=0)


def _rows(predictions: Tensor, labels: Tensor, losses: Tensor) -> ndarray:
    columns = [predictions.double(), labels.double(), losses.double()[:, None]]
    return torch.cat(columns, dim=1).cpu().numpy()
