"""Token classification: a tag for each word, such as the entity that it belongs to (NER).

Words are aligned as in transformers' run_ner.py: the first piece of a word carries its tag.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.tasks import data
from lth_scale.tasks.entities import OUTSIDE, Counts, count_entities, count_tags, marks_entities
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.metrics import is_constant
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, label_config
from lth_scale.tasks.trivial import Trivial, best_of

IGNORED = -100  # the label of a token that no word begins with
LOST = -1  # the prediction for a word that the network does not see
CANDIDATES = 8  # the most frequent tags, one of which is the best constant prediction

Tags = Sequence[Sequence[str]]  # of the words of each row


@dataclass(kw_only=True)
class TokenTask(LoadedTask):
    """Tags of words.

    labels: the tags, by number. words: of the validation rows, `tags` (the number of each word's
    tag) and `seen` (whether the network sees the word).
    """

    labels: tuple[str, ...]
    words: Dataset

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the n tagged words, and their fp32 logits (n, tags)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        tagged = batch["labels"] != IGNORED
        logits, labels = model(**inputs).logits[tagged].float(), batch["labels"][tagged]
        return F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel()), logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """Of each word: whether it is its row's first, prediction, label and loss; (words, 4)."""
        tagged = batch["labels"] != IGNORED
        labels, number = batch["labels"][tagged], tagged.nonzero()[:, 0]
        logits = outputs.detach().float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        is_first = number.diff(prepend=number.new_tensor([-1])) != 0
        columns = (is_first, logits.argmax(-1), labels, losses)
        return torch.stack([column.double() for column in columns], dim=1).cpu().numpy()

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """The metrics of `tag_scores`, and the mean loss."""
        predicted, labels = self._named(rows)
        return {**tag_scores(predicted, labels, self._count), "loss": float(rows[:, 3].mean())}

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`prediction` and `label` of each word (int16), and counts of each row (int32).

        The prediction is −1 for a word that the network does not see. The counts are those of
        `Counts`; `words` are those seen. `length` is the number of all words of a row.
        """
        seen = self.words["seen"][:]
        counts = numpy.array([sum(row) for row in seen])
        row_of_line = numpy.repeat(order, counts[order])
        table = table[numpy.argsort(row_of_line, kind="stable")]
        prediction = numpy.full(sum(map(len, seen)), LOST, numpy.int16)
        prediction[numpy.concatenate(seen).astype(bool)] = table[:, 1]
        kept = {
            "prediction": prediction,
            "label": numpy.concatenate(self.words["tags"][:]).astype(numpy.int16),
            "length": numpy.array([*map(len, seen)], numpy.int32),
            **self._row_counts(table, counts),
        }
        return Predictions(kept, is_constant(table[:, 1].astype(int)))

    def _row_counts(self, table: numpy.ndarray, counts: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """The `Counts` of each row, zeros if it has no words; counts: the lines of each row."""
        of_rows = numpy.zeros((len(counts), len(Counts._fields)), numpy.int32)
        of_rows[counts > 0] = [*map(self._count, *self._named(table))]
        return {name: of_rows[:, i].copy() for i, name in enumerate(Counts._fields)}

    def trivial(self) -> Trivial:
        """The best constant tag, the most frequent one, and O."""
        numbers = zip(self.words["tags"][:], self.words["seen"][:], strict=True)
        rows = [[self.labels[t] for t, seen in zip(*row, strict=True) if seen] for row in numbers]
        return constant_tag_scores([row for row in rows if row], self._count)

    def _named(self, table: numpy.ndarray) -> tuple[Tags, Tags]:
        """The tags that are predicted and those that are right, of the words of each row."""
        starts = table[:, 0].nonzero()[0][1:]
        names = numpy.array(self.labels, dtype=object)
        predicted, labels = (
            [part.tolist() for part in numpy.split(names[table[:, i].astype(int)], starts)]
            for i in (1, 2)
        )
        return predicted, labels

    @property
    def _count(self) -> Callable[[Sequence[str], Sequence[str]], Counts]:
        return count_entities if marks_entities(self.labels) else count_tags


def tag_scores(
    predicted: Tags, labels: Tags, count: Callable[[Sequence[str], Sequence[str]], Counts]
) -> dict[str, float]:
    """F1 over all entities, precision, recall, and the accuracy over words, as seqeval's.

    Of tags that mark no entities, F1, precision and recall are those of all words whose tag is not
    O (the accuracy if there is no O), and `macro_f1` is the mean F1 of these tags. Undefined
    numbers are 0.
    """
    counts = Counts(*map(sum, zip(*map(count, predicted, labels), strict=True)))
    scores = {
        "f1": 2 * counts.hits / max(1, counts.found + counts.entities),
        "precision": counts.hits / max(1, counts.found),
        "recall": counts.hits / max(1, counts.entities),
        "accuracy": counts.correct / max(1, counts.words),
    }
    if count is count_tags:
        scores["macro_f1"] = _macro_f1(predicted, labels)
    return scores


def _macro_f1(predicted: Tags, labels: Tags) -> float:
    """The mean F1 of the tags that are predicted or right anywhere, without O."""
    ours, theirs = (Counter(tag for row in rows for tag in row) for rows in (predicted, labels))
    pairs = zip(predicted, labels, strict=True)
    hits = Counter(p for row in pairs for p, t in zip(*row, strict=True) if p == t)
    tags = (ours | theirs).keys() - {OUTSIDE}
    return sum(2 * hits[tag] / (ours[tag] + theirs[tag]) for tag in tags) / max(1, len(tags))


def constant_tag_scores(
    labels: Tags, count: Callable[[Sequence[str], Sequence[str]], Counts]
) -> Trivial:
    """Scores of giving every word the same tag: the best one, the most frequent one, and O."""
    frequent = Counter(tag for row in labels for tag in row)
    tags = sorted(frequent, key=lambda tag: (-frequent[tag], tag))[:CANDIDATES]
    by_tag = {
        tag: tag_scores([[tag] * len(row) for row in labels], labels, count)
        for tag in {*tags, OUTSIDE}
    }
    outside = {"outside": by_tag[OUTSIDE]} if OUTSIDE in frequent else {}
    return {"constant": best_of([*by_tag.values()]), "majority": by_tag[tags[0]], **outside}


def align(
    batch: dict, tokenizer: PreTrainedTokenizerBase, length: int, segments: bool
) -> dict[str, Any]:
    """Encode words, truncated to `length` tokens; the first piece of each has its tag as label.

    batch: `words` and `tags` (their numbers). `seen` says of each word whether it has a piece
    within the length. segments: whether the model takes token types.
    """
    encoded = tokenizer(
        batch["words"],
        is_split_into_words=True,
        truncation=True,
        max_length=length,
        return_token_type_ids=None if segments else False,  # None: if the tokenizer has them
    )
    labels, seen = [], []
    for i, tags in enumerate(batch["tags"]):
        words = encoded.word_ids(i)
        is_first = [word is not None and word != before for before, word in pairwise([None, *words])]
        labels.append(
            [tags[word] if first else IGNORED for word, first in zip(words, is_first, strict=True)]
        )
        present = {*words}
        seen.append([word in present for word in range(len(tags))])
    return {**encoded, "labels": labels, "tags": batch["tags"], "seen": seen}
