"""SQuAD v1.1's exact match and F1 (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1), in percent."""

import re
import string
from collections import Counter

import datasets
import evaluate

TEXT = datasets.Value("string")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> list[str]:
    """The words of `text`: lower case, without ASCII punctuation, without a, an and the."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NO_PUNCTUATION)).split()


def exact(prediction: str, answer: str) -> float:
    """1.0 where both have the same words in the same order, else 0.0."""
    return float(normalized(prediction) == normalized(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of both, as bags; 0.0 without a common word."""
    found, wanted = normalized(prediction), normalized(answer)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


class Squad(evaluate.Metric):
    """compute(predictions=[text], references=[[answer, …]]) → {"exact_match", "f1"}, in percent.

    Each question counts once, and of its answers the best.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": TEXT, "references": datasets.List(TEXT)})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        pairs = [*zip(predictions, references, strict=True)]
        totals = {
            "exact_match": sum(
                max(exact(text, answer) for answer in answers) for text, answers in pairs
            ),
            "f1": sum(max(f1(text, answer) for answer in answers) for text, answers in pairs),
        }
        return {name: 100 * total / len(references) for name, total in totals.items()}
