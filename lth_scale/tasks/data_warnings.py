"""Warnings about data whose scores would mean little; each is one line, and none stops a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy
import pyarrow
from datasets import Dataset
from pyarrow import compute

from lth_scale.config.arguments import Training
from lth_scale.config.notices import warn
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import shown

CONSTANT = 0.95  # share of the rows that a single answer gets right
LEAKED = 0.5  # share of the distinct validation rows that are also in train
FEW_MASKED = 100  # tokens


def split_name(args: Training, split: str) -> str:
    """A split in a message: where its data comes from, and its name."""
    if args.dataset_path:
        return f"--dataset_path {args.dataset_path}: {split}"
    return f"dataset {TASKS[args.task].dataset[0]}: {split}"


def warn_about_texts(
    args: Training,
    splits: Mapping[str, Dataset],
    columns: Sequence[str],
    filled: Sequence[str] = (),
) -> None:
    """Warn about lost characters in `columns`, blanks in `filled`, and validation rows in train."""
    tables = {split: rows.with_format("arrow")[:] for split, rows in splits.items()}
    for split, table in tables.items():
        name = split_name(args, split)
        lost = [compute.match_substring(table[column], "\ufffd") for column in columns]
        _warn_about_rows(
            name,
            lost,
            "contain U+FFFD in place of lost characters, such as half an emoji; restore them if "
            "you can",
        )
        blank = [
            compute.equal(compute.utf8_trim_whitespace(table[column]), "") for column in filled
        ]
        _warn_about_rows(name, blank, "have an empty text; fill it in, or remove the row")
        if split != "train":
            _warn_about_leaks(name, tables["train"].select(columns), table.select(columns))


def _warn_about_rows(name: str, flags: Sequence[pyarrow.ChunkedArray], problem: str) -> None:
    """Warn about the rows for which any of the Boolean columns is true."""
    affected = reduce(compute.or_, flags) if flags else pyarrow.chunked_array([[False]])
    if count := compute.sum(affected).as_py():
        first = compute.index(affected, True).as_py() + 1
        warn(
            "%s: %d of %d rows, the first of them row %d, %s",
            *(name, count, len(affected), first, problem),
        )


def _warn_about_leaks(name: str, train: pyarrow.Table, validation: pyarrow.Table) -> None:
    """Warn if much of validation is in train; blank rows do not count."""
    distinct = pyarrow.chunked_array([_joined(batch) for batch in validation.to_batches()]).unique()
    distinct = distinct.filter(compute.not_equal(compute.utf8_trim_whitespace(distinct), ""))
    shared: set[str] = set()
    for batch in train.to_batches():  # the whole of train may not fit into memory
        texts = _joined(batch)
        shared |= {*texts.filter(compute.is_in(texts, value_set=distinct)).to_pylist()}
    if shared and len(shared) >= LEAKED * len(distinct):
        warn(
            "%s: %d of its %d distinct rows are also in train, so its score says little about new "
            "data; use other rows",
            *(name, len(shared), len(distinct)),
        )


def _joined(batch: pyarrow.RecordBatch) -> pyarrow.Array:
    """The columns of each row as one text."""
    columns = [column.cast(pyarrow.large_string()) for column in batch.columns]
    separator = pyarrow.scalar("\x1f", pyarrow.large_string())
    return compute.binary_join_element_wise(*columns, separator)


def _remedy(args: Training, split: str, count: int) -> str:
    """What to do about a split of `count` rows that are too much alike."""
    flag = "max_train_samples" if split == "train" else "max_eval_samples"
    is_limited = count == getattr(args, flag)
    return f"shuffle the file, or raise --{flag}" if is_limited else "add other rows"


def warn_about_labels(args: Training, split: str, labels: Sequence[int], classes: int) -> None:
    """Warn if a class is missing from a split, or one class makes up nearly all of validation."""
    missing = sorted({*range(classes)} - {*labels})
    if missing:
        always = f", so label {labels[0]} is always correct" if len(missing) == classes - 1 else ""
        warn(
            "%s: none of its %d rows has label %s%s; %s",
            split_name(args, split),
            len(labels),
            ", ".join(map(str, missing)),
            always,
            _remedy(args, split, len(labels)),
        )
    elif split != "train":
        warn_if_constant(args, split, labels, len(labels), "label")


def warn_if_constant(
    args: Training, split: str, answers: Iterable[Any], count: int, kind: str
) -> None:
    """Warn if a single answer is correct in nearly all of `count` rows: the input says nothing.

    answers: the correct ones of each row. kind: what an answer is called.
    """
    answer, correct = Counter(answers).most_common(1)[0]
    if correct >= CONSTANT * count:
        warn(
            "%s: %s %s is correct in %d of its %d rows; %s",
            *(split_name(args, split), kind, shown(answer), correct, count),
            _remedy(args, split, count),
        )


def warn_about_masked(args: Training, blocks: int, tokens: Sequence[int]) -> None:
    """Warn if few `tokens` of the validation blocks are masked, or nearly all are the same."""
    if len(tokens) < FEW_MASKED:
        warn(
            "%s: only %d tokens of its %d blocks are masked, and only masked tokens are scored; "
            "add text, or raise --max_eval_samples",
            *(split_name(args, "validation"), len(tokens), blocks),
        )
    else:
        warn_if_constant(args, "validation", tokens, len(tokens), "token")


def warn_if_undefined(predictions: numpy.ndarray, labels: numpy.ndarray) -> None:
    """Warn if a correlation is undefined."""
    for name, values in (("predictions", predictions), ("labels", labels)):
        if numpy.ptp(values) == 0:
            warn(
                "all %d %s are %.4g, so the correlation is undefined and counts as 0",
                *(len(values), name, values[0]),
            )
