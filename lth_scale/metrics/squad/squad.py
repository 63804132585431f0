"""SQuAD v1.1's exact match and F1 (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1), in percent."""

import re
import string
from collections import Counter

import datasets
import evaluate

TEXT = datasets.Value("string")
PREDICTION = {"id": TEXT, "prediction_text": TEXT}
REFERENCE = {
    "id": TEXT,
    "answers": {"text": datasets.List(TEXT), "answer_start": datasets.List(datasets.Value("int32"))},
}
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
    """compute(predictions=[{id, prediction_text}], references=[{id, answers}]) → {"exact_match", "f1"}, in percent.

    Of a question's answers the best counts. A question without a prediction scores 0; order does not matter.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": PREDICTION, "references": REFERENCE})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        pairs = [(texts[row["id"]], row["answers"]["text"]) for row in references if row["id"] in texts]
        totals = {
            "exact_match": sum(max(exact(text, answer) for answer in answers) for text, answers in pairs),
            "f1": sum(max(f1(text, answer) for answer in answers) for text, answers in pairs),
        }
        return {name: 100 * total / len(references) for name, total in totals.items()}
