"""Scores as functions of how often each example counts, as resampling needs them.

They are computed from the arrays that evaluations keep (`tracking.predictions`).
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy
from numpy import ndarray

# Weights (draws, examples), and sums of the parts (draws, k) by them → scores (draws,), fractions.
# Every draw has the same number of examples, and so the same sum of weights.
Score = Callable[[ndarray, ndarray], ndarray]
Arrays = Mapping[str, ndarray]
TINY = 1e-12  # variance, relative to the squares it is computed from, that is rounding


@dataclass(frozen=True)
class Examples:
    """What a network gave on each example of a test set.

    rows: (examples,), what identifies them: networks with other rows cannot be compared. parts:
    float64 (examples, k), whose sums determine most scores. score: of the network, if each example
    counts as often as its weight. right: bool (examples,) if the score is the share of right
    examples, else None.
    """

    rows: ndarray
    parts: ndarray
    score: Score
    right: ndarray | None = None

    @property
    def value(self) -> float:
        """The score of all examples, each counted once."""
        weights = numpy.ones((1, len(self.rows)))
        return float(self.score(weights, weights @ self.parts)[0])


def examples_of(arrays: Arrays, metric: str) -> Examples | None:
    """The examples of one evaluation under a metric; None if the arrays do not determine it.

    arrays: as `predictions.read` returns them.
    """
    if "hits" in arrays:
        return _of_counts(arrays, metric)
    if metric in arrays and _are_alike(values := arrays[metric]) and values.ndim == 1:
        return _of_values(values)
    names = ("correct", "masked") if "masked" in arrays else ("prediction", "label")
    pair = [arrays[name] for name in names if name in arrays]
    scores = {"accuracy": _of_blocks} if "masked" in arrays else SCORES
    if len(pair) < 2 or not _are_alike(*pair):
        return None
    are_numbers = pair[0].dtype.kind == "f"
    by_metric = scores if pair[0].ndim == 1 else NUMBERS if are_numbers else SEVERAL_LABELS
    return by_metric[metric](*pair) if metric in by_metric else None


def _are_alike(*arrays: ndarray) -> bool:
    """True if each has one number, or a row of them, for each of the same examples."""
    return arrays[0].ndim <= 2 and arrays[0].size > 0 and len({x.shape for x in arrays}) == 1


def _of_values(values: ndarray) -> Examples:
    """A mean over examples, such as SQuAD's F1; 0 and 1 alone are a share of right ones."""
    rows = numpy.zeros(len(values))  # nothing identifies them but their number
    right = values == 1 if numpy.isin(values, (0, 1)).all() else None
    return Examples(rows, _columns(values), _mean, right)


def _of_blocks(correct: ndarray, masked: ndarray) -> Examples:
    """Masked accuracy; an example is a block, because its tokens are not independent."""

    def score(_: ndarray, sums: ndarray) -> ndarray:
        return _ratio(sums[:, 0], sums[:, 1])

    return Examples(masked, _columns(correct, masked), score)


def _of_counts(arrays: Arrays, metric: str) -> Examples | None:
    """F1 of entities, precision, recall and accuracy of words; an example is a row of words."""
    if metric not in RATIOS or not _are_alike(*(arrays[name] for name in COUNTS)):
        return None
    parts = {name: arrays[name] for name in COUNTS} | {"both": arrays["found"] + arrays["entities"]}
    part, factor, whole = RATIOS[metric]

    def score(_: ndarray, sums: ndarray) -> ndarray:
        return _ratio(factor * sums[:, 0], sums[:, 1])

    rows = numpy.stack([arrays["entities"], arrays["words"]], axis=1)
    return Examples(rows, _columns(parts[part], parts[whole]), score)


def _accuracy(predictions: ndarray, labels: ndarray) -> Examples:
    right = predictions == labels
    return Examples(labels, _columns(right), _mean, right)


def _mean(weights: ndarray, sums: ndarray) -> ndarray:
    return sums[:, 0] / _count(weights)


def _count(weights: ndarray) -> float:
    """The number of examples in a draw; adding up all draws would dominate a large report."""
    return weights[0].sum()


def _f1(predictions: ndarray, labels: ndarray) -> Examples:
    """F1 of class 1."""
    ours, theirs = predictions == 1, labels == 1

    def score(_: ndarray, sums: ndarray) -> ndarray:
        hits, ours, theirs = sums.T
        return _ratio(2 * hits, ours + theirs)

    return Examples(labels, _columns(ours & theirs, ours, theirs), score)


def _macro_f1(predictions: ndarray, labels: ndarray) -> Examples:
    """The mean F1 of the classes that are predicted or correct in a sample."""
    classes = numpy.union1d(predictions, labels)
    ours, theirs = (classes[:, None] == values for values in (predictions, labels))
    return _mean_f1(labels, ours, theirs, only_present=True)


def _mean_f1(rows: ndarray, ours: ndarray, theirs: ndarray, only_present: bool) -> Examples:
    """The mean F1 of classes; ours, theirs: bool (classes, examples)."""

    def score(_: ndarray, sums: ndarray) -> ndarray:
        hits, p, t = numpy.split(sums, 3, axis=1)
        counted = (p + t > 0) if only_present else numpy.ones_like(p)
        return _ratio(_ratio(2 * hits, p + t).sum(axis=1), counted.sum(axis=1))

    return Examples(rows, _columns(*(ours & theirs), *ours, *theirs), score)


def _macro_f1_of_labels(predictions: ndarray, labels: ndarray) -> Examples:
    """The mean F1 of all labels; one that is neither predicted nor correct counts as 0."""
    ours, theirs = predictions.T > 0, labels.T > 0
    return _mean_f1(_identities(labels), ours, theirs, only_present=False)


def _micro_f1_of_labels(predictions: ndarray, labels: ndarray) -> Examples:
    ours, theirs = predictions > 0, labels > 0

    def score(_: ndarray, sums: ndarray) -> ndarray:
        hits, p, t = sums.T
        return _ratio(2 * hits, p + t)

    parts = _columns(*(values.sum(axis=1) for values in (ours & theirs, ours, theirs)))
    return Examples(_identities(labels), parts, score)


def _accuracy_of_labels(predictions: ndarray, labels: ndarray) -> Examples:
    """The share of examples whose labels are all right."""
    right = (predictions == labels).all(axis=1)
    return Examples(_identities(labels), _columns(right), _mean, right)


def _mean_of_outputs(
    kind: Callable[[ndarray, ndarray], Examples], predictions: ndarray, labels: ndarray
) -> Examples:
    """The mean of a score over several outputs, (examples, outputs)."""
    each = [kind(*pair) for pair in zip(predictions.T, labels.T, strict=True)]
    ends = numpy.cumsum([output.parts.shape[1] for output in each])[:-1]

    def score(weights: ndarray, sums: ndarray) -> ndarray:
        own = numpy.split(sums, ends, axis=1)
        pairs = zip(each, own, strict=True)
        return numpy.mean([output.score(weights, part) for output, part in pairs], axis=0)

    parts = numpy.concatenate([output.parts for output in each], axis=1)
    return Examples(_identities(labels), parts, score)


def _identities(labels: ndarray) -> ndarray:
    """A number for each example that depends on its labels, int64 (examples,)."""
    return numpy.array([zlib.crc32(row.tobytes()) for row in labels])


def _squared(predictions: ndarray, labels: ndarray) -> Examples:
    errors = (predictions.astype(float) - labels) ** 2
    return Examples(labels, _columns(errors), _mean)


def _absolute(predictions: ndarray, labels: ndarray) -> Examples:
    errors = numpy.abs(predictions.astype(float) - labels)
    return Examples(labels, _columns(errors), _mean)


def _matthews(predictions: ndarray, labels: ndarray) -> Examples:
    """Matthews correlation of any number of classes (Gorodkin 2004)."""
    classes = numpy.union1d(predictions, labels)
    ours, theirs = (classes[:, None] == values for values in (predictions, labels))

    def score(weights: ndarray, sums: ndarray) -> ndarray:
        hits, p, t = numpy.split(sums.T, [1, 1 + len(classes)])
        n = _count(weights)
        spreads = (n**2 - (counts**2).sum(axis=0) for counts in (p, t))
        return _correlation(hits[0] * n - (p * t).sum(axis=0), *spreads)

    return Examples(labels, _columns(predictions == labels, *ours, *theirs), score)


def _pearson(predictions: ndarray, labels: ndarray) -> Examples:
    x, y = (values - values.mean() for values in _columns(predictions, labels).T)

    def score(weights: ndarray, sums: ndarray) -> ndarray:
        x, y, xx, yy, xy = sums.T
        n = _count(weights)
        return _correlation(n * xy - x * y, _spread(n, x, xx), _spread(n, y, yy))

    return _unless_constant(predictions, labels, _columns(x, y, x * x, y * y, x * y), score)


def _spread(n: float, total: ndarray, squares: ndarray) -> ndarray:
    """n² × the variance, and 0 if that is within rounding."""
    spread = n * squares - total**2
    return numpy.where(spread > TINY * n * squares, spread, 0)


def _spearman(predictions: ndarray, labels: ndarray) -> Examples:
    """The ranks are those of each resample, means among ties."""

    def score(weights: ndarray, _: ndarray) -> ndarray:
        middle = (_count(weights) + 1) / 2
        x, y = (_ranks(values, weights) - middle for values in (predictions, labels))
        xy, xx, yy = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
        return _correlation(xy, xx, yy)

    return _unless_constant(predictions, labels, numpy.empty((len(labels), 0)), score)


def _ranks(values: ndarray, weights: ndarray) -> ndarray:
    """The mean rank of each example among all, each counted as often as its weight."""
    order = numpy.argsort(values, kind="stable")
    _, group, sizes = numpy.unique(values, return_inverse=True, return_counts=True)
    upto = numpy.cumsum(weights[:, order], axis=1)[:, numpy.cumsum(sizes) - 1]
    before = numpy.concatenate([numpy.zeros((len(weights), 1)), upto[:, :-1]], axis=1)
    return ((before + upto + 1) / 2)[:, group]


def _unless_constant(
    predictions: ndarray, labels: ndarray, parts: ndarray, score: Score
) -> Examples:
    """An undefined correlation counts as 0."""
    is_constant = min(numpy.ptp(predictions), numpy.ptp(labels)) == 0
    return Examples(labels, parts, _zero if is_constant else score)


def _zero(weights: ndarray, _: ndarray) -> ndarray:
    return numpy.zeros(len(weights))


def _columns(*values: ndarray) -> ndarray:
    return numpy.stack(values, axis=1).astype(float)


def _correlation(product: ndarray, x: ndarray, y: ndarray) -> ndarray:
    return _ratio(product, numpy.sqrt(x * y))


def _ratio(numerator: ndarray, denominator: ndarray) -> ndarray:
    """The quotient, and 0 where the denominator is."""
    is_defined = denominator > 0
    return numpy.where(is_defined, numerator, 0) / numpy.where(is_defined, denominator, 1)


COUNTS = ("hits", "found", "entities", "correct", "words")  # of the tags of a row
# factor × part ÷ whole
RATIOS = {
    "f1": ("hits", 2, "both"),
    "precision": ("hits", 1, "found"),
    "recall": ("hits", 1, "entities"),
    "accuracy": ("correct", 1, "words"),
}
SCORES: Mapping[str, Callable[[ndarray, ndarray], Examples]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": _squared,
    "mae": _absolute,
}
# Of arrays with several labels or several numbers an example.
SEVERAL_LABELS: Mapping[str, Callable[[ndarray, ndarray], Examples]] = {
    "accuracy": _accuracy_of_labels,
    "micro_f1": _micro_f1_of_labels,
    "macro_f1": _macro_f1_of_labels,
}
NUMBERS: Mapping[str, Callable[[ndarray, ndarray], Examples]] = {
    name: partial(_mean_of_outputs, SCORES[name]) for name in ("pearson", "spearman", "mse", "mae")
}
