"""Rows of a task: from local JSON Lines files, from the package, or from the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDatasetDict
from pyarrow import compute
from transformers import PreTrainedTokenizerBase

from lth_scale.config import files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat
from lth_scale.tasks.dataset_cache import cached, fingerprint, materialize
from lth_scale.tasks.locations import data_file, local_directory
from lth_scale.tasks.offline import NO_NETWORK, go_offline_unless_reachable
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import Bounds, Columns, features, read_rows, shown
from lth_scale.tasks.tokenizer_digest import tokenizer_digest


def local_file(directory: Path, split: str) -> Path:
    """`directory/split.jsonl` or its .xz. Raises BadInput if neither is a regular file."""
    path = data_file(directory, split)
    if path is None:
        others = ", ".join(sorted(other.name for other in directory.glob(f"{split}.*"))[:3])
        hint = f" (found {others})" if others else ""
        raise BadInput(
            f"--dataset_path {directory}: {split}.jsonl is missing{hint}; "
            "add it, with one JSON object per line"
        )
    try:
        files.check_regular(path)
    except OSError as error:
        raise BadInput(
            f"--dataset_path {path}: {error.strerror}; replace it with a JSON Lines file"
        ) from None
    return path


def limit_rows(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all of them if it is None."""
    return rows.select(range(min(limit or len(rows), len(rows))))


def row_limit(args: Training, split: str) -> int | None:
    """--max_train_samples or --max_eval_samples, whichever applies to the split."""
    return args.max_train_samples if split == "train" else args.max_eval_samples


def load_splits(
    args: Training, columns: Columns, bounds: Bounds | None = None
) -> dict[str, Dataset]:
    """Load the `columns` of the splits of --task from --dataset_path or the Hub.

    bounds: of the column `label`, or None. --max_train_samples and --max_eval_samples apply. An
    additional validation split without a local file is left out. Raises BadInput.
    """
    kind = TASKS[args.task]
    directory = local_directory(args.task, args.dataset_path)
    if directory is None:
        return _load_hub_splits(args, columns, bounds)
    optional = kind.more.values()
    splits = [
        split
        for split in kind.splits
        if split not in optional or any(directory.glob(f"{split}.jsonl*"))
    ]
    return {
        split: load_local(local_file(directory, split), columns, bounds, row_limit(args, split))
        for split in splits
    }


def _load_hub_splits(args: Training, columns: Columns, bounds: Bounds | None) -> dict[str, Dataset]:
    kind = TASKS[args.task]
    dataset = load_hub(*kind.dataset)
    splits = {
        split: limit_rows(dataset[split].select_columns([*columns]), row_limit(args, split))
        for split in kind.splits
    }
    for split, rows in splits.items():
        check_labels(f"dataset {kind.dataset[0]}: {split}", rows, bounds)
    return splits


def check_labels(name: str, rows: Dataset, bounds: Bounds | None) -> None:
    """Raise BadInput if a label of the Hub's rows is missing or out of `bounds`."""
    if bounds is None:
        return
    low, high = bounds
    labels = rows.with_format("arrow")[:]["label"]
    valid = compute.and_(compute.greater_equal(labels, low), compute.less_equal(labels, high))
    invalid = compute.index(valid.fill_null(False), False).as_py()
    if invalid >= 0:
        raise BadInput(
            f"{name}: label {shown(labels[invalid].as_py())} of row {invalid + 1} is out of range "
            f"{low} … {high}; correct a copy, and use it as --dataset_path DIR"
        )


def load_local(
    path: Path, columns: Columns, bounds: Bounds | None = None, limit: int | None = None
) -> Dataset:
    """Load the first `limit` rows of a file through the `datasets` cache. Raises BadInput."""
    if next(read_rows(path, columns, bounds), None) is None:
        raise BadInput(f"--dataset_path {path}: no rows; write one JSON object per line")
    key = fingerprint(files.sha256(path), columns, bounds)
    rows = materialize(lambda: read_rows(path, columns, bounds), key, features(columns))
    return limit_rows(rows, limit)


def load_hub(
    path: str, name: str | None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """`datasets.load_dataset`, failing within seconds if there is neither a network nor a cache.

    Raises BadInput.
    """
    go_offline_unless_reachable(path, "dataset")
    try:
        return datasets.load_dataset(path, name, streaming=streaming)
    except Exception as error:
        raise BadInput(
            f"dataset {path}: cannot be downloaded from the Hub ({first_line(error)}); {NO_NETWORK}"
        ) from error


def hub_revision(rows: Dataset) -> str:
    """The revision of the Hub's data behind these rows: a commit, or a digest that depends on it.

    Returns "" if it is unknown, as for a stream.
    """
    known = rows.cache_files and rows.builder_name != "generator"
    return Path(rows.cache_files[0]["filename"]).parent.name if known else ""


def encode(
    rows: Dataset,
    function: Callable[..., dict],
    tokenizer: PreTrainedTokenizerBase,
    **arguments: Any,
) -> Dataset:
    """`rows.map(function)` in batches, cached by rows, function, tokenizer and arguments.

    function(batch, tokenizer=…, **arguments) returns the columns that replace the old ones. The
    cache key is ours because a tokenizer's own hash changes as it is used.
    """
    key = fingerprint(
        compat.fingerprint(rows),
        function.__qualname__,
        tokenizer_digest(tokenizer),
        sorted(arguments.items()),
    )

    def make(key: str) -> Dataset:
        return rows.map(
            function,
            batched=True,
            new_fingerprint=key,
            fn_kwargs={"tokenizer": tokenizer, **arguments},
            remove_columns=rows.column_names,
        )

    with PartialState().main_process_first():
        return cached(make, key)
