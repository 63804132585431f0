"""One line of warning for each thing in the data that makes a score say little; none of them stops anything."""

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
from lth_scale.tasks.jsonl import shown
from lth_scale.tasks.registry import TASKS

MOST = 0.95  # a share of the rows that one answer gets right
SHARED = 0.5  # a share of the validation rows that are in train too
MASKED = 100  # masked tokens


def named(args: Training, split: str) -> str:
    """A split, in a warning."""
    home = (
        f"--dataset_path {args.dataset_path}"
        if args.dataset_path
        else f"dataset {TASKS[args.task].dataset[0]}"
    )
    return f"{home}: {split}"


def remedy(args: Training, split: str, count: int) -> str:
    """What helps where the `count` rows of a split are too much of one kind."""
    flag = "max_train_samples" if split == "train" else "max_eval_samples"
    return (
        f"shuffle the file, or raise --{flag}"
        if count == getattr(args, flag)
        else "give it other rows too"
    )


def texts(
    args: Training,
    splits: Mapping[str, Dataset],
    columns: Sequence[str],
    filled: Sequence[str] = (),
) -> None:
    """Warn of lost characters in `columns`, blank texts in `filled`, and validation rows that are in train too."""
    tables = {split: rows.with_format("arrow")[:] for split, rows in splits.items()}
    for split, table in tables.items():
        name = named(args, split)
        lost = [compute.match_substring(table[column], "\ufffd") for column in columns]
        _rows(
            name,
            lost,
            "hold U+FFFD instead of characters that were lost, such as half an emoji; mend or leave them",
        )
        blank = [
            compute.equal(compute.utf8_trim_whitespace(table[column]), "") for column in filled
        ]
        _rows(name, blank, "have an empty text; fill it, or remove the row")
        if split != "train":
            _leak(name, tables["train"].select(columns), table.select(columns))


def _rows(name: str, found: Sequence[pyarrow.ChunkedArray], what: str) -> None:
    """Warn of the rows for which one of some columns of truth values is true."""
    which = reduce(compute.or_, found) if found else pyarrow.chunked_array([[False]])
    if count := compute.sum(which).as_py():
        first = compute.index(which, True).as_py() + 1
        warn(
            "%s: %d of %d rows, the first of them row %d, %s", name, count, len(which), first, what
        )


def _leak(name: str, train: pyarrow.Table, validation: pyarrow.Table) -> None:
    """Warn where much of validation is in train; rows of blanks do not count."""
    asked = pyarrow.chunked_array([_joined(batch) for batch in validation.to_batches()]).unique()
    asked = asked.filter(compute.not_equal(compute.utf8_trim_whitespace(asked), ""))
    parts = (
        _joined(batch) for batch in train.to_batches()
    )  # which may be more than fits into memory
    shared = {
        text
        for part in parts
        for text in part.filter(compute.is_in(part, value_set=asked)).to_pylist()
    }
    if shared and len(shared) >= SHARED * len(asked):
        warn(
            "%s: %d of its %d different rows are in train too, so its score says little of new data; give it others",
            *(name, len(shared), len(asked)),
        )


def _joined(batch: pyarrow.RecordBatch) -> pyarrow.Array:
    """The columns of each row as one text."""
    columns = [column.cast(pyarrow.large_string()) for column in batch.columns]
    return compute.binary_join_element_wise(
        *columns, pyarrow.scalar("\x1f", pyarrow.large_string())
    )


def labels(args: Training, split: str, rows: Sequence[int], classes: int) -> None:
    """Warn where a class has no row, or where one is nearly all of validation. rows: the label of each."""
    name, help = named(args, split), remedy(args, split, len(rows))
    missing = sorted({*range(classes)} - {*rows})
    if missing:
        listed, alone = ", ".join(map(str, missing)), len(missing) == classes - 1
        rest = f", so label {rows[0]} is always right" if alone else ""
        warn("%s: none of its %d rows has label %s%s; %s", name, len(rows), listed, rest, help)
    elif split != "train":
        answers(args, split, rows, len(rows), "label")


def answers(args: Training, split: str, values: Iterable[Any], count: int, what: str) -> None:
    """Warn where one of the values, each right in a row, is right in most of `count` rows: the input says nothing."""
    value, often = Counter(values).most_common(1)[0]
    if often >= MOST * count:
        name, help = named(args, split), remedy(args, split, count)
        warn(
            "%s: %s %s is right in %d of its %d rows; %s",
            name,
            what,
            shown(value),
            often,
            count,
            help,
        )


def masked(args: Training, blocks: int, tokens: Sequence[int]) -> None:
    """Warn where few tokens of the validation blocks are masked, or nearly all are one. tokens: those masked."""
    if len(tokens) < MASKED:
        warn(
            "%s: only %d tokens of its %d blocks are masked, and they alone are scored; give it more text, or raise "
            "--max_eval_samples",
            named(args, "validation"),
            len(tokens),
            blocks,
        )
    else:
        answers(args, "validation", tokens, len(tokens), "token")


def correlation(predictions: numpy.ndarray, labels: numpy.ndarray) -> None:
    """Warn where a correlation is not defined."""
    for what, values in (("predictions", predictions), ("labels", labels)):
        if numpy.ptp(values) == 0:
            warn(
                "all %d %s are %.4g, so no correlation is defined, and it counts as 0",
                len(values),
                what,
                values[0],
            )
