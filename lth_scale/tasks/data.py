"""Rows of a task: from JSON lines in the Hub's own columns, from the package, or from the Hub."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, Value
from pyarrow import compute

from lth_scale.config import files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat
from lth_scale.tasks import tokenization
from lth_scale.tasks.cache import cached, fingerprint, materialize, settle_for_cache
from lth_scale.tasks.jsonl import ANSWERS, Bounds, Columns, read_rows, shown
from lth_scale.tasks.locations import data_file, local_directory

log = logging.getLogger("lth_scale")


def local_file(directory: Path, split: str) -> Path:
    """`directory/split.jsonl`, or its .xz. Raises BadInput where neither is, or one is no file."""
    path = data_file(directory, split)
    if path is None:
        others = ", ".join(sorted(other.name for other in directory.glob(f"{split}.*"))[:3])
        there = f", and there is {others}" if others else ""
        raise BadInput(
            f"--dataset_path {directory}: {split}.jsonl is missing{there}; put it there, one JSON object a line"
        )
    try:
        files.check_regular(path)
    except OSError as problem:
        raise BadInput(
            f"--dataset_path {path}: {problem.strerror}; put a file of JSON lines there"
        ) from None
    return path


def first(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all."""
    return rows.select(range(min(limit or len(rows), len(rows))))


def load_splits(
    args: Training,
    hub: tuple[str, str | None],
    columns: Columns,
    labels: Bounds | None,
    limits: Mapping[str, int | None],
    optional: tuple[str, ...] = (),
) -> dict[str, Dataset]:
    """`columns` of the splits that `limits` names, each cut to its limit: of --dataset_path, or of the Hub's `hub`.

    labels: what `label` lies within, or None. A local file of an `optional` split may be missing; its split is
    then left out. Raises BadInput.
    """
    directory = local_directory(args.task, args.dataset_path)
    if directory is None:
        whole = load_hub(*hub)
        splits = {
            split: first(whole[split].select_columns([*columns]), limit)
            for split, limit in limits.items()
        }
        for split, rows in splits.items():
            check_labels(f"dataset {hub[0]}: {split}", rows, labels)
        return splits
    wanted = [
        split for split in limits if split not in optional or any(directory.glob(f"{split}.jsonl*"))
    ]
    return {
        split: load_local(local_file(directory, split), columns, labels, limits[split])
        for split in wanted
    }


def check_labels(name: str, rows: Dataset, labels: Bounds | None) -> None:
    """Raise BadInput where a label of the Hub's rows is missing, or is not within `labels`."""
    if labels is None:
        return
    low, high = labels
    column = rows.with_format("arrow")[:]["label"]
    within = compute.and_(compute.greater_equal(column, low), compute.less_equal(column, high))
    wrong = compute.index(within.fill_null(False), False).as_py()
    if wrong >= 0:
        raise BadInput(
            f"{name}: label {shown(column[wrong].as_py())} of row {wrong + 1} is not within {low} … {high}; "
            "mend a copy of it, and give that as --dataset_path DIR"
        )


def load_local(path: Path, columns: Columns, labels: Bounds | None, limit: int | None) -> Dataset:
    """The file's rows as an Arrow dataset in the `datasets` cache, the first `limit` of them. Raises BadInput."""
    if next(read_rows(path, columns, labels), None) is None:
        raise BadInput(f"--dataset_path {path}: holds no rows; write one JSON object a line")
    rows = materialize(
        lambda: read_rows(path, columns, labels),
        fingerprint(files.sha256(path), columns, labels),
        Features(
            {name: ANSWERS if kind == "answers" else Value(kind) for name, kind in columns.items()}
        ),
    )
    return first(rows, limit)


def load_hub(
    path: str, name: str | None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """`datasets.load_dataset`, failing in seconds where there is no network and nothing is cached. Raises BadInput."""
    settle_for_cache(path, "dataset")
    try:
        return datasets.load_dataset(path, name, streaming=streaming)
    except Exception as problem:
        raise BadInput(
            f"dataset {path}: cannot be had from the Hub ({first_line(problem)}); {NO_NETWORK}"
        ) from problem


NO_NETWORK = "check the network, or use --preset demo, or local files with --model_name_or_path DIR and --dataset_path DIR"


def hub_revision(rows: Dataset) -> str:
    """What `datasets` calls the Hub's data that these rows were made of: a commit, or a digest that depends on it.

    "" where that is not known: of a stream.
    """
    known = rows.cache_files and rows.builder_name != "generator"
    return Path(rows.cache_files[0]["filename"]).parent.name if known else ""


def encode(rows: Dataset, function: Callable, tokenizer: Any, **arguments: Any) -> Dataset:
    """`rows.map(function)` in batches, cached under a fingerprint of rows, tokenizer, function and arguments.

    function(batch, tokenizer=…, **arguments) returns the encoded columns; the old ones are dropped.
    (A tokenizer's own hash changes as it is used, so `datasets` cannot key on it.)
    """
    key = fingerprint(
        compat.fingerprint(rows),
        function.__qualname__,
        tokenization.key(tokenizer),
        sorted(arguments.items()),
    )

    def make(key: str) -> Dataset:
        options = {
            "fn_kwargs": {"tokenizer": tokenizer, **arguments},
            "remove_columns": rows.column_names,
        }
        return rows.map(function, batched=True, new_fingerprint=key, **options)

    with PartialState().main_process_first():
        return cached(make, key)
