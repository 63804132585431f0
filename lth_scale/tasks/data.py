"""Rows of a task, from local JSON Lines files, the package or the Hub, and their cache."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError
from pyarrow import compute
from transformers import PreTrainedTokenizerBase

from lth_scale.config import files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.exit_codes import FULL
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat
from lth_scale.tasks.libraries import NO_NETWORK, go_offline_unless_reachable
from lth_scale.tasks.locations import data_file, local_directory
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import Bounds, Columns, features, read_rows, shown
from lth_scale.tasks.tokenizer import tokenizer_digest

log = logging.getLogger("lth_scale")
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # how an Arrow stream ends


def load_splits(
    args: Training, columns: Columns, bounds: Bounds | None = None
) -> dict[str, Dataset]:
    """Load the `columns` of the splits of --task from --dataset_path or the Hub.

    bounds: of the column `label`, or None. --max_train_samples and --max_eval_samples apply. An
    additional validation split without a local file is left out. Raises BadInput.
    """
    kind = TASKS[args.task]
    if directory := local_directory(args.task, args.dataset_path):
        return {
            split: limit_rows(
                args, split, load_local(local_file(directory, split), columns, bounds)
            )
            for split in kind.splits
            if split not in kind.more.values() or any(directory.glob(f"{split}.jsonl*"))
        }
    dataset, splits = load_hub(*kind.dataset), {}
    for split in kind.splits:
        splits[split] = limit_rows(args, split, dataset[split].select_columns([*columns]))
        check_labels(f"dataset {kind.dataset[0]}: {split}", splits[split], bounds)
    return splits


def limit_rows(args: Training, split: str, rows: Dataset) -> Dataset:
    """The rows of a split that --max_train_samples or --max_eval_samples leaves."""
    limit = args.max_train_samples if split == "train" else args.max_eval_samples
    return rows.select(range(min(limit or len(rows), len(rows))))


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


def load_local(path: Path, columns: Columns, bounds: Bounds | None = None) -> Dataset:
    """Load the rows of a file through the `datasets` cache. Raises BadInput."""
    if next(read_rows(path, columns, bounds), None) is None:
        raise BadInput(f"--dataset_path {path}: no rows; write one JSON object per line")
    key = fingerprint(files.sha256(path), columns, bounds)
    return materialize(lambda: read_rows(path, columns, bounds), key, features(columns))


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
    options = {"tokenizer": tokenizer, **arguments}
    columns = rows.column_names
    make = partial(rows.map, function, batched=True, fn_kwargs=options, remove_columns=columns)
    content = (compat.fingerprint(rows), function.__qualname__, tokenizer_digest(tokenizer))
    key = fingerprint(*content, sorted(arguments.items()))
    return _cached(lambda key: make(new_fingerprint=key), key)


def fingerprint(*key: Any) -> str:
    """A name in the cache for what `key` determines."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def materialize(
    rows: Callable[[], Iterable[dict]], key: str, features: Features | None = None
) -> Dataset:
    """Write `rows()` to the cache under `key`, once. Raises BadInput, also that of a row."""
    make = partial(Dataset.from_generator, rows, features=features)
    return _cached(lambda key: make(fingerprint=key), key)


def materialize_table(table: Callable[[], pyarrow.Table], key: str) -> Dataset:
    """Write `table()` to the cache under `key`, once. Raises BadInput, also that of `table`."""
    return _cached(partial(_written_table, table), key)


def _written_table(table: Callable[[], pyarrow.Table], key: str) -> Dataset:
    path = Path(datasets.config.HF_DATASETS_CACHE, "lth_scale", f"{key}.arrow")
    if not path.exists():
        content = table()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary_path(path) as unfinished:
            with pyarrow.ipc.new_stream(unfinished, content.schema) as writer:
                writer.write_table(content, max_chunksize=1_000)
            os.replace(unfinished, path)
    return Dataset.from_file(str(path))


def _cached(make: Callable[[str], Dataset], key: str) -> Dataset:
    """Return what `make` caches under `key`; if that entry is damaged, under a second key.

    Runs on the main process first. Raises the BadInput of a row, BadInput if the cache is not
    writable, and Stopped if its disk is full.
    """
    with PartialState().main_process_first():
        try:
            return _complete(make(key))
        except Exception as error:  # a damaged file makes `datasets` and Arrow raise many kinds
            _cause(error)
            log.warning(
                "an entry of the datasets cache is damaged (%s): it is rebuilt", first_line(error)
            )
        try:
            return _complete(make(fingerprint(key, "spare")))
        except Exception as error:
            raise _cause(error) from None


def _complete(rows: Dataset) -> Dataset:
    """The rows. Raises ValueError if a cache file is truncated or is not a valid table."""
    for name in (file["filename"] for file in rows.cache_files):
        with open(name, "rb") as content:
            content.seek(max(0, os.path.getsize(name) - len(ARROW_END)))
            if content.read() != ARROW_END:
                raise ValueError(f"{name} is truncated")
    rows.data.validate(full=True)
    return rows


def _cause(error: Exception) -> BaseException:
    """The error inside the one that `datasets` raises while it generates rows.

    Raises BadInput or Stopped unless it may come from a damaged cache entry.
    """
    cause = (isinstance(error, DatasetGenerationError) and error.__cause__) or error
    number = cause.errno if isinstance(cause, OSError) else None  # Arrow's errors have none
    cache = f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}"
    if any(words in str(cause) for words in FULL):
        raise Stopped(
            f"{cache}: the disk is full ({first_line(cause)}); free some space, or set it to "
            "another directory"
        ) from error
    if number:
        raise BadInput(
            f"{cache}: cannot be used ({first_line(cause)}); set it to a writable directory"
        ) from error
    if isinstance(cause, BadInput):
        raise cause from None
    return cause
