"""The GLUE tasks: a sentence or a pair of them, a class or a score."""

from dataclasses import dataclass, field

import numpy
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from lth_scale import metrics
from lth_scale.arguments import DATASETS, Training
from lth_scale.tasks import cautions, data
from lth_scale.tasks.task import (
    Batch,
    Task,
    has_segments,
    load_model,
    load_tokenizer,
    prediction_rows,
    prediction_scores,
    sequence_length,
)

NAMES = {"spearmanr": "spearman"}  # the metric's name → ours
CORRELATIONS = ("cola", "stsb")  # tasks, of which the first metric is one
SCORES = (0.0, 5.0)  # what an annotator of STS-B may give


@dataclass(frozen=True)
class Family:
    """Columns, classes (1 is regression), the validation split, and further ones: suffix of their metrics → split."""

    texts: tuple[str, ...]
    classes: int = 2
    validation: str = "validation"
    more: dict[str, str] = field(default_factory=dict)


FAMILIES = {
    "mnli": Family(("premise", "hypothesis"), 3, "validation_matched", {"mismatched": "validation_mismatched"}),
    "qqp": Family(("question1", "question2")),
    "stsb": Family(("sentence1", "sentence2"), classes=1),
    "wnli": Family(("sentence1", "sentence2")),
    "qnli": Family(("question", "sentence")),
    "mrpc": Family(("sentence1", "sentence2")),
    "rte": Family(("sentence1", "sentence2")),
    "sst2": Family(("sentence",)),
    "cola": Family(("sentence",)),
}


def tokenize(
    batch: dict, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], length: int, segments: bool
) -> dict:
    """Token ids of the texts, cut to `length`, and `labels`; `segments` says whether the model tells them apart."""
    options = {} if segments else {"return_token_type_ids": False}
    encoded = tokenizer(*(batch[text] for text in texts), truncation=True, max_length=length, **options)
    return {**encoded, "labels": batch["label"]}


def load_rows(args: Training, family: Family) -> dict[str, Dataset]:
    """Rows of train and of each validation split, as many as --max_train_samples and so on say. Raises BadInput."""
    label = "float32" if family.classes == 1 else "int64"
    columns = {**dict.fromkeys(family.texts, "string"), "label": label}
    validation = (family.validation, *family.more.values())
    limits = {"train": args.max_train_samples, **dict.fromkeys(validation, args.max_eval_samples)}
    bounds = SCORES if family.classes == 1 else (0, family.classes - 1)
    return data.load_splits(args, DATASETS[args.task], columns, bounds, limits, optional=tuple(family.more.values()))


def caution(args: Training, family: Family, splits: dict[str, Dataset]) -> None:
    """Warn of texts, classes without a row, and labels or scores that are nearly all the same."""
    cautions.texts(args, splits, family.texts, filled=family.texts)
    for split, rows in splits.items():
        if family.classes == 1:
            cautions.answers(args, split, rows["label"][:], len(rows), "score")
        else:
            cautions.labels(args, split, rows["label"][:], family.classes)


def load(args: Training) -> Task:
    """The task that --task names, with its model. Raises BadInput."""
    family = FAMILIES[args.task]
    tokenizer = load_tokenizer(args)
    splits = load_rows(args, family)
    kind = "regression" if family.classes == 1 else "single_label_classification"
    head = {"num_labels": family.classes, "problem_type": kind}  # a config may say otherwise
    model, prunable, _ = load_model(args, AutoModelForSequenceClassification, tokenizer, **head)
    length = sequence_length(args, model, tokenizer)
    options = {"texts": family.texts, "length": length, "segments": has_segments(model)}
    encoded = {split: data.encode(rows, tokenize, tokenizer, **options) for split, rows in splits.items()}
    caution(args, family, splits)
    collate = DataCollatorWithPadding(tokenizer)
    metric = metrics.load("glue", args.task)

    def loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        output = model(**batch)
        return output.loss, output.logits

    def rows(logits: Tensor, batch: Batch) -> numpy.ndarray:
        return prediction_rows(logits, batch["labels"])

    def score(rows: numpy.ndarray) -> dict[str, float]:
        if args.task in CORRELATIONS:
            cautions.correlation(*rows.T[:2])
        return {NAMES.get(name, name): value for name, value in prediction_scores(rows, metric).items()}

    return Task(
        model=model, prunable=prunable, tokenizer=tokenizer, revision=getattr(model.config, "_commit_hash", None) or "",
        train=encoded["train"], validation=encoded[family.validation], collate=collate, eval_collate=collate,
        loss=loss, rows=rows, score=score, grouped=True,
        more={suffix: encoded[split] for suffix, split in family.more.items() if split in encoded},
    )  # fmt: skip
