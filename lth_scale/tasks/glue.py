"""The GLUE tasks: a sentence or a pair of sentences, and a class or a score."""

from dataclasses import dataclass

import numpy
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.predictions import prediction_rows, prediction_scores
from lth_scale.tasks.registry import TASKS, TaskKind
from lth_scale.tasks.rows import Bounds, Columns
from lth_scale.tasks.task import Batch, LoadedTask, Row, label_config

SIMILARITIES: Bounds = (0.0, 5.0)  # the scores that STS-B's annotators could give
CORRELATIONS = ("matthews_correlation", "pearson")


@dataclass(kw_only=True)
class GlueTask(LoadedTask):
    """Classification, or regression to a score, with the metrics of its `kind`."""

    kind: TaskKind
    collator: DataCollatorWithPadding

    def collate(self, rows: list[Row]) -> Batch:
        """Rows as tensors, padded."""
        return self.collator(rows)

    eval_collate = collate

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's own loss, and its logits (n, classes)."""
        output = model(**batch)
        return output.loss, output.logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """See `prediction_rows`."""
        return prediction_rows(outputs, batch["labels"])

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """The task's metrics, and the mean loss."""
        if self.kind.metric in CORRELATIONS:
            data_warnings.warn_if_undefined(*rows.T[:2])
        return prediction_scores(rows, self.kind.metrics)


def load_glue(args: Training) -> GlueTask:
    """Load the task that --task names. Raises BadInput."""
    kind = TASKS[args.task]
    tokenizer = load_tokenizer(args)
    splits = data.load_splits(args, columns(kind), label_bounds(kind))
    if args.keep_head:
        check_labels(args, kind.labels)
    problem_type = "regression" if is_regression(kind) else "single_label_classification"
    labels = label_config(kind.labels, problem_type)
    loaded = load_model(args, AutoModelForSequenceClassification, tokenizer, **labels)
    inputs = agree_on_inputs(args, loaded.model, tokenizer, len(kind.texts))
    options = {"texts": kind.texts, "length": inputs.length, "segments": inputs.segments}
    encoded = {
        split: data.encode(rows, tokenize, tokenizer, **options) for split, rows in splits.items()
    }
    warn_about_data(args, splits)
    return GlueTask(
        **vars(loaded),
        train=encoded["train"],
        validation=encoded[kind.validation],
        more={suffix: encoded[split] for suffix, split in kind.more.items() if split in encoded},
        kind=kind,
        collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length),
    )


def is_regression(kind: TaskKind) -> bool:
    """True if the task predicts a score."""
    return len(kind.labels) == 1


def columns(kind: TaskKind) -> Columns:
    """The columns of the task's data."""
    label = "float32" if is_regression(kind) else "int64"
    return {**dict.fromkeys(kind.texts, "string"), "label": label}


def label_bounds(kind: TaskKind) -> Bounds:
    """The smallest and the largest label."""
    return SIMILARITIES if is_regression(kind) else (0, len(kind.labels) - 1)


def tokenize(
    batch: dict,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[str, ...],
    length: int,
    segments: bool,
) -> dict:
    """Encode the text columns, truncated to `length` tokens, and copy the labels.

    segments: whether the model takes token types.
    """
    options = {} if segments else {"return_token_type_ids": False}
    encoded = tokenizer(
        *(batch[text] for text in texts), truncation=True, max_length=length, **options
    )
    return {**encoded, "labels": batch["label"]}


def warn_about_data(args: Training, splits: dict[str, Dataset]) -> None:
    """Warn about texts, classes without a row, and labels or scores that are nearly constant."""
    kind = TASKS[args.task]
    data_warnings.warn_about_texts(args, splits, kind.texts, filled=kind.texts)
    for split, rows in splits.items():
        labels = rows["label"][:]
        if is_regression(kind):
            data_warnings.warn_if_constant(args, split, labels, len(rows), "score")
        else:
            data_warnings.warn_about_labels(args, split, labels, len(kind.labels))
