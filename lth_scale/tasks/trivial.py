"""Scores of trivial predictors: what a network must beat before its score means anything."""

from collections.abc import Mapping, Sequence

import numpy

from lth_scale.tasks.metrics import load_metric

DRAWS = 20  # of random predictions; their mean is the score by chance
Trivial = Mapping[str, Mapping[str, float]]  # predictor → metric → score


def trivial_scores(labels: numpy.ndarray, classes: int, metrics: Sequence[str]) -> Trivial:
    """Scores of the best constant prediction under each metric, and of chance.

    labels: (examples,) of one split. classes: 1 for a regression, where the constant is the mean
    and chance is left out. metrics: of GLUE; the best constant may differ between them.
    """
    metric = load_metric("glue", "+".join(metrics))

    def scores(predictions: numpy.ndarray) -> dict[str, float]:
        return metric.compute(predictions=predictions, references=labels)

    candidates = [labels.mean()] if classes == 1 else range(classes)
    constant = _best([scores(numpy.full_like(labels, value)) for value in candidates])
    if classes == 1:
        return {"constant": constant}
    generator = numpy.random.default_rng(0)
    drawn = [scores(generator.integers(classes, size=len(labels))) for _ in range(DRAWS)]
    chance = {name: float(numpy.mean([each[name] for each in drawn])) for name in metrics}
    return {"constant": constant, "chance": chance}


def unigram_scores(train: numpy.ndarray, labels: numpy.ndarray, vocabulary: int) -> Trivial:
    """Masked-token accuracy of the most frequent token and of chance, and the unigram model's loss.

    train: token ids of the training blocks; labels: the masked tokens of validation. The unigram
    model predicts each token with its frequency in `train` (add-one smoothing); the loss is in
    nats per token.
    """
    counts = numpy.bincount(train.ravel(), minlength=vocabulary) + 1.0
    logs = numpy.log(counts / counts.sum())
    constant = float((labels == numpy.bincount(labels).argmax()).mean())
    unigram = {"accuracy": float((labels == counts.argmax()).mean())}
    return {
        "constant": {"accuracy": constant},
        "unigram": {**unigram, "loss": float(-logs[labels].mean())},
        "chance": {"accuracy": 1 / vocabulary, "loss": float(numpy.log(vocabulary))},
    }


def constant_answer_scores(answers: Sequence[Sequence[str]], candidates: int = 50) -> Trivial:
    """Scores of giving every question the same answer: the best of the most frequent ones.

    answers: the accepted answers of each question. Chance is left out: it depends on the contexts.
    """
    metric = load_metric("squad")
    texts, counts = numpy.unique([text for each in answers for text in each], return_counts=True)
    frequent = texts[numpy.argsort(-counts, kind="stable")[:candidates]]
    scores = [
        metric.compute(predictions=[str(text)] * len(answers), references=answers)
        for text in frequent
    ]
    return {"constant": {name: value / 100 for name, value in _best(scores).items()}}


def _best(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: max(each[name] for each in scores) for name in scores[0]}
