"""The GLUE tasks: a sentence or a pair of them, a class or a score."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lth_scale.arguments import Arguments
from lth_scale.tasks import data
from lth_scale.tasks.task import Batch, Task, load_model, load_tokenizer, sequence_length

METRICS: dict[str, Callable] = {
    "accuracy": lambda predicted, labels: accuracy_score(labels, predicted),
    "f1": lambda predicted, labels: f1_score(labels, predicted),
    "matthews_correlation": lambda predicted, labels: matthews_corrcoef(labels, predicted),
    "pearson": lambda predicted, labels: pearsonr(predicted, labels).statistic,
    "spearman": lambda predicted, labels: spearmanr(predicted, labels).statistic,
}


@dataclass(frozen=True)
class Family:
    """Columns, classes (1 is regression) and metrics, the paper's first."""

    texts: tuple[str, ...]
    classes: int = 2
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"


FAMILIES = {
    "mnli": Family(("premise", "hypothesis"), classes=3, validation="validation_matched"),
    "qqp": Family(("question1", "question2"), metrics=("accuracy", "f1")),
    "stsb": Family(("sentence1", "sentence2"), classes=1, metrics=("pearson", "spearman")),
    "wnli": Family(("sentence1", "sentence2")),
    "qnli": Family(("question", "sentence")),
    "mrpc": Family(("sentence1", "sentence2"), metrics=("accuracy", "f1")),
    "rte": Family(("sentence1", "sentence2")),
    "sst2": Family(("sentence",)),
    "cola": Family(("sentence",), metrics=("matthews_correlation",)),
}


def tokenize(
    batch: dict, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], length: int, segments: bool
) -> dict:
    """Token ids of the texts, cut to `length`, and `labels`; `segments` says whether the model tells them apart."""
    options = {} if segments else {"return_token_type_ids": False}
    encoded = tokenizer(*(batch[text] for text in texts), truncation=True, max_length=length, **options)
    return {**encoded, "labels": batch["label"]}


def has_segments(model: PreTrainedModel) -> bool:
    """True where the model takes `token_type_ids` and has at least two of them."""
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes_them and getattr(model.config, "type_vocab_size", 0) >= 2


def load_rows(args: Arguments, family: Family) -> tuple[Dataset, Dataset]:
    """(train, validation) rows, cut to --max_train_samples and --max_eval_samples. Raises BadInput."""
    label = "float32" if family.classes == 1 else "int64"
    columns = {**dict.fromkeys(family.texts, "string"), "label": label}
    limits = {"train": args.max_train_samples, family.validation: args.max_eval_samples}
    directory = data.local_directory(args)
    if directory:
        classes = None if family.classes == 1 else family.classes
        files = {split: data.local_file(directory, split) for split in limits}
        splits = {split: data.load_local(file, columns, classes, limits[split]) for split, file in files.items()}
    else:
        whole = data.load_hub("nyu-mll/glue", args.task)
        splits = {
            split: whole[split].select_columns([*columns]).take(n or len(whole[split])) for split, n in limits.items()
        }
    return splits["train"], splits[family.validation]


def load(args: Arguments) -> Task:
    """The task that --task names, with its model. Raises BadInput."""
    family = FAMILIES[args.task]
    tokenizer = load_tokenizer(args)
    train, validation = load_rows(args, family)
    model = load_model(args, AutoModelForSequenceClassification, tokenizer, num_labels=family.classes)
    length = sequence_length(args, model, tokenizer)
    options = {"texts": family.texts, "length": length, "segments": has_segments(model)}
    train, validation = (data.encode(rows, tokenize, tokenizer, **options) for rows in (train, validation))
    collate = DataCollatorWithPadding(tokenizer)

    def loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        output = model(**batch)
        return output.loss, output.logits

    def rows(logits: Tensor, batch: Batch) -> numpy.ndarray:
        logits, labels = logits.detach().float(), batch["labels"]
        if family.classes == 1:
            predicted, each = logits[:, 0], (logits[:, 0] - labels) ** 2
        else:
            predicted, each = logits.argmax(-1), F.cross_entropy(logits, labels, reduction="none")
        return torch.stack([predicted.float(), labels.float(), each], dim=1).cpu().double().numpy()

    def score(rows: numpy.ndarray) -> dict[str, float]:
        predicted, labels, losses = rows.T
        values = {metric: float(METRICS[metric](predicted, labels)) for metric in family.metrics}
        return {**values, "loss": float(losses.mean())}

    return Task(
        model=model, tokenizer=tokenizer, revision=getattr(model.config, "_commit_hash", None) or "",
        train=train, validation=validation, collate=collate, eval_collate=collate,
        loss=loss, rows=rows, score=score, grouped=True,
    )  # fmt: skip
