"""The GLUE tasks: a sentence or a pair of sentences, and a class or a score."""

from collections.abc import Mapping
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
from lth_scale.config.errors import warn
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.metrics import (
    is_constant,
    kept_predictions,
    prediction_rows,
    prediction_scores,
)
from lth_scale.tasks.registry import TASKS, TaskKind
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, in_row_order, label_config
from lth_scale.tasks.trivial import Trivial, trivial_scores

SIMILARITIES = (0.0, 5.0)  # the range of the scores that STS-B's annotators could give
CORRELATIONS = ("matthews_correlation", "pearson")


@dataclass(kw_only=True)
class GlueTask(LoadedTask):
    """Classification, or regression to a score, with the metrics of its `kind`."""

    kind: TaskKind

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's own loss, and its logits (n, classes)."""
        output = model(**batch)
        return output.loss, output.logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        return prediction_rows(outputs, batch["labels"])

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """The task's metrics, and the mean loss. Warns if a correlation is undefined."""
        for name, values in zip(("predictions", "labels"), rows.T[:2], strict=True):
            if self.kind.metric in CORRELATIONS and numpy.ptp(values) == 0:
                warn(
                    f"all {len(values)} {name} are {values[0]:.4g}, so the correlation is "
                    "undefined and counts as 0"
                )
        return prediction_scores(rows, self.kind.metrics)

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`prediction` and `label` of each row: int16 classes, or float32 scores."""
        kept = kept_predictions(in_row_order(table, order), is_regression=self._classes == 1)
        return Predictions(kept, is_constant(kept["prediction"]))

    def trivial(self) -> Trivial:
        """The best constant and chance on the validation rows, and on each further split."""
        scores = self._trivial_scores(self.validation)
        for suffix, rows in self.more.items():
            for predictor, further in self._trivial_scores(rows).items():
                named = {f"{metric}_{suffix}": score for metric, score in further.items()}
                scores[predictor] = {**scores[predictor], **named}
        return scores

    def _trivial_scores(self, rows: Dataset) -> dict[str, Mapping[str, float]]:
        labels = numpy.asarray(rows["labels"][:])
        return dict(trivial_scores(labels, self._classes, self.kind.metrics))

    @property
    def _classes(self) -> int:
        return len(self.kind.labels)


def load_glue(args: Training) -> GlueTask:
    """Load the task that --task names. Raises BadInput."""
    kind = TASKS[args.task]
    is_regression = len(kind.labels) == 1
    tokenizer = load_tokenizer(args)
    columns = dict.fromkeys(kind.texts, "string")
    columns["label"] = "float32" if is_regression else "int64"
    bounds = SIMILARITIES if is_regression else (0, len(kind.labels) - 1)
    splits = data.load_splits(args, columns, bounds)
    if args.keep_head:
        check_labels(args, kind.labels)
    problem_type = "regression" if is_regression else "single_label_classification"
    config = label_config(kind.labels, problem_type)
    loaded = load_model(args, AutoModelForSequenceClassification, tokenizer, **config)
    inputs = agree_on_inputs(args, loaded.model, tokenizer, len(kind.texts))
    options = {"texts": kind.texts, "length": inputs.length, "segments": inputs.segments}
    encoded = {
        split: data.encode(rows, tokenize, tokenizer, **options) for split, rows in splits.items()
    }
    data_warnings.warn_about_texts(args, splits, kind.texts, filled=kind.texts)
    for split, rows in splits.items():
        labels = rows["label"][:]
        if is_regression:
            data_warnings.warn_if_constant(args, split, labels, len(rows), "score")
        else:
            data_warnings.warn_about_labels(args, split, labels, len(kind.labels))
    return GlueTask(
        **vars(loaded),
        train=encoded["train"],
        validation=encoded[kind.validation],
        more={suffix: encoded[split] for suffix, split in kind.more.items() if split in encoded},
        kind=kind,
        collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length),
    )


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
    types = None if segments else False  # None: if the tokenizer has them
    columns = (batch[text] for text in texts)
    encoded = tokenizer(*columns, truncation=True, max_length=length, return_token_type_ids=types)
    return {**encoded, "labels": batch["label"]}
