"""Scores of trivial predictors: what a network must beat before its score means anything."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy

from lth_scale.tasks.metrics import load_metric
from lth_scale.tasks.metrics.squad.squad import exact_match, f1, normalize

DRAWS = 20  # of random predictions; their mean is the score by chance of F1
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
    constant = best_of([scores(numpy.full_like(labels, value)) for value in candidates])
    if classes == 1:
        return {"constant": constant}
    generator = numpy.random.default_rng(0)
    drawn = [scores(generator.integers(classes, size=len(labels))) for _ in range(DRAWS)]
    means = {name: float(numpy.mean([each[name] for each in drawn])) for name in metrics}
    exact = {"accuracy": 1 / classes, "matthews_correlation": 0.0}
    chance = means | {name: exact[name] for name in metrics if name in exact}
    return {"constant": constant, "chance": chance}


def unigram_scores(
    train: Iterable[numpy.ndarray], labels: numpy.ndarray, vocabulary: int
) -> Trivial:
    """Masked-token accuracy of the most frequent token and of chance, and the unigram model's loss.

    train: token ids of the training blocks, in parts; labels: the masked tokens of validation. The
    unigram model predicts each token with its frequency in `train` (add-one smoothing); the loss is
    in nats per token.
    """
    counts = numpy.ones(vocabulary)
    for tokens in train:
        counts += numpy.bincount(tokens, minlength=vocabulary)
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

    answers: the accepted answers of each question; the empty one is right where there are none, and
    tried if there is such a question. Chance is left out: it depends on the contexts.
    """
    counts = Counter(text for accepted in answers for text in accepted)
    words = {text: {*normalize(text)} for text in counts}

    def scores(text: str) -> dict[str, float]:
        # Only these can score: comparing all of them takes a minute for SQuAD.
        alike = {other for other in words if words[other] & words[text] or not words[other]}
        rivals = [alike.intersection(accepted) for accepted in answers]
        return {
            name: sum(
                max((metric(text, answer) for answer in each), default=0.0) for each in rivals
            )
            / len(answers)
            for name, metric in (("f1", f1), ("exact_match", exact_match))
        }

    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:candidates]
    share = sum(not accepted for accepted in answers) / len(answers)
    none = [dict.fromkeys(("f1", "exact_match"), share)] if share else []
    return {"constant": best_of([*map(scores, frequent), *none])}


def best_of(
    scores: Sequence[Mapping[str, float]], less_is_better: Collection[str] = ()
) -> dict[str, float]:
    """The best of several scores under each metric."""
    return {
        name: (min if name in less_is_better else max)(each[name] for each in scores)
        for name in scores[0]
    }
