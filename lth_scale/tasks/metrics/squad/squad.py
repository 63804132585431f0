"""SQuAD v1.1's exact match and F1 in percent (Rajpurkar et al. 2016, arXiv:1606.05250, 6.1)."""

import re
import string
from collections import Counter

import datasets
import evaluate

TEXT = datasets.Value("string")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> list[str]:
    """The words of `text` in lower case, without ASCII punctuation, a, an and the."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NO_PUNCTUATION)).split()


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both have the same words in the same order, else 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over bags of words; 0.0 if no word is shared."""
    predicted, expected = normalize(prediction), normalize(answer)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


class Squad(evaluate.Metric):
    """compute(predictions=[text], references=[[answer, …]]) → {"f1", "exact_match"}, in percent.

    Each question counts once, with its best answer.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": TEXT, "references": datasets.List(TEXT)})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        pairs = [*zip(predictions, references, strict=True)]
        metrics = {"f1": f1, "exact_match": exact_match}
        totals = {
            name: sum(max(metric(text, answer) for answer in answers) for text, answers in pairs)
            for name, metric in metrics.items()
        }
        return {name: 100 * total / len(references) for name, total in totals.items()}
