"""Text classification on the user's own data: a class, several labels or numbers of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import pyarrow
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.distributed import compat
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.columns import check_texts, label_column, text_columns
from lth_scale.tasks.glue import tokenize
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.labels import Labels, describe_classes, in_order
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.metrics import is_constant
from lth_scale.tasks.metrics.scores import metrics_of
from lth_scale.tasks.sources import Source, limit_sources, load_sources
from lth_scale.tasks.targets import Numbers, OneClass, SeveralLabels, Targets
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, in_row_order, label_config
from lth_scale.tasks.trivial import Trivial


@dataclass(kw_only=True)
class TextClassificationTask(LoadedTask):
    """Classes, labels or numbers, with the metrics of `targets`."""

    targets: Targets
    facts: Mapping[str, Any] = field(default_factory=dict)
    test: Dataset | None = None
    test_labels: Sequence[str] = ()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's own loss, and its logits (n, outputs)."""
        output = model(**batch)
        return output.loss, output.logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        return self.targets.rows(outputs, batch["labels"])

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """The metrics of the targets, and the mean loss."""
        return self.targets.score(*self.targets.pair(rows)) | {"loss": float(rows[:, -1].mean())}

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`prediction` and `label` of each row, as `Targets.kept` has them."""
        pair = self.targets.pair(in_row_order(table, order))
        prediction, label = (self.targets.kept(values) for values in pair)
        return Predictions({"prediction": prediction, "label": label}, is_constant(prediction))

    def answers(self, table: numpy.ndarray, order: numpy.ndarray) -> list[str]:
        """The predicted class, labels (joined by `; `) or numbers of each test row."""
        values, _ = self.targets.pair(in_row_order(table, order))
        return [self.targets.text(value) for value in values]

    def trivial(self) -> Trivial:
        """The best constant and, except for numbers, chance."""
        labels = numpy.asarray(self.validation["labels"][:], dtype=numpy.float64)
        return self.targets.trivial(self.targets.values(labels.reshape(len(labels), -1)))


def load_text_classification(args: Training) -> TextClassificationTask:
    """Load the task on the data that the flags name. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    everything = load_sources(args, lambda train: _strata(args, train))
    train = everything["train"]
    column = label_column(train, args.label_column_name)
    texts = text_columns(train, args.text_column_names, column)
    labels = Labels(train, column, args.label_separator)
    targets = _targets(args, labels, train)
    sources = limit_sources(args, everything)
    splits = {
        split: _labelled(sources[split], texts, labels, targets)
        for split in ("train", "validation")
    }
    if args.keep_head:
        check_labels(args, targets.labels)
    config = label_config(targets.labels, targets.problem_type)
    loaded = load_model(args, AutoModelForSequenceClassification, tokenizer, **config)
    inputs = agree_on_inputs(args, loaded.model, tokenizer, len(texts))
    options = {"texts": texts, "length": inputs.length, "segments": inputs.segments}
    if "test" in sources:
        splits["test"] = _labelled(sources["test"], texts, None, targets)
    encoded = {
        split: data.encode(rows, tokenize, tokenizer, **options) for split, rows in splits.items()
    }
    data_warnings.warn_about_texts(args, splits, texts, filled=texts)
    for split in ("train", "validation"):
        targets.warn(args, split, splits[split]["label"][:])
    task = TextClassificationTask(
        **vars(loaded),
        train=encoded["train"],
        validation=encoded["validation"],
        test=encoded.get("test"),
        test_labels=labels.texts(sources["test"]) if "test" in sources else (),
        targets=targets,
        collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length),
        facts={"text_columns": [*texts], "label_column": column, "labels": [*targets.labels]},
    )
    task.remark = "\n".join(filter(None, [task.remark, *_remarks(args, task, sources, labels)]))
    task.trivial()  # a metric that cannot score these labels is refused before anything is trained
    return task


def _strata(args: Training, train: Source) -> list[str]:
    """What the split-off validation rows keep in proportion: the class of a row, if it has one."""
    column = label_column(train, args.label_column_name)
    labels = Labels(train, column, args.label_separator)
    if args.do_regression or labels.several:
        return [""] * len(train)
    return [name for [name] in labels.names(train)]


def _targets(args: Training, labels: Labels, train: Source) -> Targets:
    """What is predicted, from all training rows. Raises BadInput."""
    if args.do_regression:
        width = len(labels.numbers(train)[0])
        names = [labels.column] if width == 1 else [f"{labels.column}_{i}" for i in range(width)]
        return Numbers(labels=tuple(names), metrics=metrics_of("regression", args.metric_name))
    found = {name for parts in labels.names(train) for name in parts}
    classes = labels.declared or in_order(found)
    kind = SeveralLabels if labels.several else OneClass
    least = 1 if labels.several else 2
    if len(found) < least:
        raise BadInput(
            f"{train.name}: column {labels.column!r} has {len(found)} class"
            f"{'' if len(found) == 1 else 'es'} ({', '.join(map(repr, found))}) in {len(train)} "
            f"rows; use rows of {least} at least"
        )
    return kind(labels=classes, metrics=metrics_of(kind.problem_type, args.metric_name))


def _labelled(
    source: Source, texts: tuple[str, ...], labels: Labels | None, targets: Targets
) -> Dataset:
    """The texts of a split, and `label` as the model's loss takes it. Raises BadInput.

    labels: None if the split is to be predicted only.
    """
    source.require(texts, "text_column_names")
    check_texts(source, texts)
    columns = source.rows.with_format("arrow")[:]
    table = {text: columns[text] for text in texts}
    values = targets.read(labels, source) if labels else [targets.unlabelled] * len(source)
    table["label"] = pyarrow.array(values)
    content = (compat.fingerprint(source.rows), texts, labels and labels.key)
    key = data.fingerprint("text-classification", *content, targets.problem_type, targets.labels)
    return data.materialize_table(lambda: pyarrow.table(table), key)


def _remarks(
    args: Training, task: TextClassificationTask, sources: dict[str, Source], labels: Labels
) -> list[str]:
    """What the task reads, and how its classes are distributed."""
    facts, train = task.facts, sources["train"]
    said = [f"texts: {' and '.join(map(repr, facts['text_columns']))}, labels: {labels.column!r}"]
    if not isinstance(task.targets, Numbers):
        said.append(describe_classes(labels.names(train)))
    return said
