"""The GLUE tasks: a sentence or a pair of them, a class or a score."""

from dataclasses import dataclass, field

import numpy
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.distributed import compat
from lth_scale.tasks import data, data_warnings, metrics, tokenization
from lth_scale.tasks.base import Batch, Task, labelled, prediction_rows, prediction_scores
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.registry import TASKS

NAMES = {"spearmanr": "spearman"}  # the metric's name → ours
CORRELATIONS = ("cola", "stsb")  # tasks, of which the first metric is one
SCORES = (0.0, 5.0)  # what an annotator of STS-B may give


@dataclass(frozen=True)
class Family:
    """Columns, names of the classes in GLUE's order (one is a score), the validation split, and further ones.

    more: suffix of their metrics → split.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    validation: str = "validation"
    more: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many; 1 is regression."""
        return len(self.labels)


FAMILIES = {
    "mnli": Family(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "validation_matched",
        {"mismatched": "validation_mismatched"},
    ),
    "qqp": Family(("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": Family(("sentence1", "sentence2"), ("similarity",)),
    "wnli": Family(("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "qnli": Family(("question", "sentence"), ("entailment", "not_entailment")),
    "mrpc": Family(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "rte": Family(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst2": Family(("sentence",), ("negative", "positive")),
    "cola": Family(("sentence",), ("unacceptable", "acceptable")),
}


def tokenize(
    batch: dict,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[str, ...],
    length: int,
    segments: bool,
) -> dict:
    """Token ids of the texts, cut to `length`, and `labels`; `segments` says whether the model tells them apart."""
    options = {} if segments else {"return_token_type_ids": False}
    encoded = tokenizer(
        *(batch[text] for text in texts), truncation=True, max_length=length, **options
    )
    return {**encoded, "labels": batch["label"]}


def load_rows(args: Training, family: Family) -> dict[str, Dataset]:
    """Rows of train and of each validation split, as many as --max_train_samples and so on say. Raises BadInput."""
    label = "float32" if family.classes == 1 else "int64"
    columns = {**dict.fromkeys(family.texts, "string"), "label": label}
    validation = (family.validation, *family.more.values())
    limits = {"train": args.max_train_samples, **dict.fromkeys(validation, args.max_eval_samples)}
    bounds = SCORES if family.classes == 1 else (0, family.classes - 1)
    return data.load_splits(
        args,
        TASKS[args.task].dataset,
        columns,
        bounds,
        limits,
        optional=tuple(family.more.values()),
    )


def caution(args: Training, family: Family, splits: dict[str, Dataset]) -> None:
    """Warn of texts, classes without a row, and labels or scores that are nearly all the same."""
    data_warnings.texts(args, splits, family.texts, filled=family.texts)
    for split, rows in splits.items():
        if family.classes == 1:
            data_warnings.answers(args, split, rows["label"][:], len(rows), "score")
        else:
            data_warnings.labels(args, split, rows["label"][:], family.classes)


def load_glue(args: Training) -> Task:
    """The task that --task names, with its model. Raises BadInput."""
    family = FAMILIES[args.task]
    tokenizer = load_tokenizer(args)
    splits = load_rows(args, family)
    kind = "regression" if family.classes == 1 else "single_label_classification"
    if args.keep_head:
        check_labels(args, family.labels)
    loaded = load_model(
        args, AutoModelForSequenceClassification, tokenizer, **labelled(family.labels, kind)
    )
    model = loaded.model
    inputs = tokenization.agree(args, model, tokenizer, len(family.texts))
    options = {"texts": family.texts, "length": inputs.length, "segments": inputs.segments}
    encoded = {
        split: data.encode(rows, tokenize, tokenizer, **options) for split, rows in splits.items()
    }
    caution(args, family, splits)
    collate = DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length)
    metric = metrics.load_metric("glue", args.task)

    def loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        output = model(**batch)
        return output.loss, output.logits

    def rows(logits: Tensor, batch: Batch) -> numpy.ndarray:
        return prediction_rows(logits, batch["labels"])

    def score(rows: numpy.ndarray) -> dict[str, float]:
        if args.task in CORRELATIONS:
            data_warnings.correlation(*rows.T[:2])
        return {
            NAMES.get(name, name): value for name, value in prediction_scores(rows, metric).items()
        }

    return Task(
        model=model,
        prunable=loaded.prunable,
        base_sha256=loaded.base_sha256,
        remark=loaded.remark,
        tokenizer=tokenizer,
        revision=compat.commit_hash(model.config),
        train=encoded["train"],
        validation=encoded[family.validation],
        collate=collate,
        eval_collate=collate,
        loss=loss,
        rows=rows,
        score=score,
        grouped=True,
        more={suffix: encoded[split] for suffix, split in family.more.items() if split in encoded},
    )
