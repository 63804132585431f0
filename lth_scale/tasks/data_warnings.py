"""Warnings about data whose scores would mean little; each is one line, and none stops a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow
from datasets import Dataset
from pyarrow import compute

from lth_scale.config.arguments import Training
from lth_scale.config.errors import warn
from lth_scale.config.texts import brief
from lth_scale.tasks.locations import data_origin
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import shown

CONSTANT = 0.95  # share of the rows that a single answer gets right
LOST = "contain U+FFFD in place of lost characters, such as half an emoji; restore them if you can"
LEAKED = 0.5  # share of the distinct validation rows that are also in train


def split_name(args: Training, split: str) -> str:
    """A split in a message: where its data comes from, and its name."""
    return f"{data_origin(args, TASKS[args.task].dataset)}: {split}"


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
        blank = [
            compute.equal(compute.utf8_trim_whitespace(table[column]), "") for column in filled
        ]
        _warn_about_rows(name, lost, LOST)
        _warn_about_rows(name, blank, "have an empty text; fill it in, or remove the row")
        if split != "train":
            _warn_about_leaks(name, tables["train"].select(columns), table.select(columns))


def _warn_about_rows(name: str, flags: Sequence[pyarrow.ChunkedArray], problem: str) -> None:
    """Warn about the rows for which any of the Boolean columns is true."""
    affected = reduce(compute.or_, flags) if flags else pyarrow.chunked_array([[False]])
    if count := compute.sum(affected).as_py():
        first = compute.index(affected, True).as_py() + 1
        warn(f"{name}: {count} of {len(affected)} rows, the first of them row {first}, {problem}")


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
            f"{name}: {len(shared)} of its {len(distinct)} distinct rows are also in train, so its "
            "score says little about new data; use other rows"
        )


def _joined(batch: pyarrow.RecordBatch) -> pyarrow.Array:
    """The columns of each row as one text."""
    text = pyarrow.large_string()
    columns = [column.cast(text) for column in batch.columns]
    return compute.binary_join_element_wise(*columns, pyarrow.scalar("\x1f", text))


def _remedy(args: Training, split: str, count: int) -> str:
    """What to do about a split of `count` rows that are too much alike."""
    flag = "max_train_samples" if split == "train" else "max_eval_samples"
    is_limited = count == getattr(args, flag)
    return f"shuffle the file, or raise --{flag}" if is_limited else "add other rows"


def warn_about_labels(
    args: Training, split: str, labels: Sequence[int], classes: int, names: Sequence[str] = ()
) -> None:
    """Warn if a class is missing from a split, or one class makes up nearly all of validation.

    names: of the classes, if they are not the numbers themselves.
    """
    if missing := sorted({*range(classes)} - {*labels}):
        named = [repr(names[number]) if names else str(number) for number in missing]
        only = repr(names[labels[0]]) if names else labels[0]
        always = f", so label {only} is always correct" if len(missing) == classes - 1 else ""
        warn_about_absent(args, split, len(labels), named, always)
    elif split != "train":
        kept = [names[label] for label in labels] if names else labels
        warn_if_constant(args, split, kept, len(labels), "label")


def warn_about_absent(
    args: Training, split: str, count: int, names: Sequence[str], consequence: str = ""
) -> None:
    """Warn that none of the `count` rows of a split has the labels `names`."""
    warn(
        f"{split_name(args, split)}: none of its {count} rows has label "
        f"{brief(', '.join(names))}{consequence}; {_remedy(args, split, count)}"
    )


def warn_if_constant(
    args: Training, split: str, answers: Iterable[Any], count: int, kind: str
) -> None:
    """Warn if a single answer is correct in nearly all of `count` rows: the input says nothing.

    answers: the correct ones of each row. kind: what an answer is called.
    """
    answer, correct = Counter(answers).most_common(1)[0]
    if correct >= CONSTANT * count:
        warn(
            f"{split_name(args, split)}: {kind} {shown(answer)} is correct in {correct} of its "
            f"{count} rows; {_remedy(args, split, count)}"
        )
