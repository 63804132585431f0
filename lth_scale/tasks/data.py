"""Rows of a task: from JSON lines in the Hub's own columns, from the package, or from the Hub."""

import errno
import hashlib
import json
import logging
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import datasets
import huggingface_hub.constants
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, List, Value
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lth_scale import files
from lth_scale.arguments import FULL, BadInput, Stopped, Training, first_line
from lth_scale.provenance import data_file, local_directory
from lth_scale.tasks import tokens

log = logging.getLogger("lth_scale")

Columns = Mapping[str, str]  # column → "string", "int64" or "float32", the dtypes of `datasets`, or "answers", SQuAD's
KINDS: dict[str, tuple[type, ...]] = {"string": (str,), "int64": (int,), "float32": (float, int), "answers": (dict,)}
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow's
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}


def local_file(directory: Path, split: str) -> Path:
    """`directory/split.jsonl`, or its .xz. Raises BadInput where neither is, or one is no file."""
    path = data_file(directory, split)
    if path is None:
        raise BadInput(f"--dataset_path {directory}: {split}.jsonl is missing; put it there, one JSON object a line")
    try:
        files.check_regular(path)
    except OSError as problem:
        raise BadInput(f"--dataset_path {path}: {problem.strerror}; put a file of JSON lines there") from None
    return path


def _open(path: Path) -> IO[str]:
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def read_rows(path: Path, columns: Columns, labels: int | None) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file, only `columns`, each checked.

    labels: how many classes `label` has, or None. Raises BadInput with the line's number.
    """
    number = 0
    try:
        with _open(path) as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield _check_row(json.loads(line), columns, labels)
    except (json.JSONDecodeError, RecursionError) as problem:
        why = str(problem).partition(":")[0]
        raise BadInput(f"--dataset_path {path}: line {number} is no JSON ({why}); mend the line") from None
    except UnicodeDecodeError:
        raise BadInput(f"--dataset_path {path}: not UTF-8 after line {number}; convert the file") from None
    except (EOFError, lzma.LZMAError, OSError) as problem:
        raise BadInput(f"--dataset_path {path}: cannot be read after line {number} ({problem}); mend it") from problem
    except ValueError as problem:
        raise BadInput(f"--dataset_path {path}: line {number}: {problem}") from None


def _check_row(row: Any, columns: Columns, labels: int | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("is no JSON object; write one object a line, with the Hub's columns")
    for column, kind in columns.items():
        if column not in row:
            raise ValueError(f"column {column!r} is missing; the Hub's columns are {', '.join(columns)}")
        if not isinstance(row[column], KINDS[kind]) or isinstance(row[column], bool):
            raise ValueError(f"column {column!r} holds {row[column]!r}; it should be {kind}")
        if kind == "float32" and not abs(row[column]) < 3e38:
            raise ValueError(f"column {column!r} holds {row[column]!r}, which fp32 cannot; give a finite number")
        if kind == "answers":
            _check_answers(row[column], row["context"])
    if labels is not None and not 0 <= row["label"] < labels:
        raise ValueError(f"label {row['label']} is none of 0 … {labels - 1}; remove unlabelled rows")
    return {column: row[column] for column in columns}


def _check_answers(answers: dict[str, Any], context: str) -> None:
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts) > 0):
        raise ValueError("column 'answers' needs 'text' and 'answer_start', lists of one length, of one answer or more")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise ValueError(
                f"answer {text!r} at {start!r}; give a text that is not empty and where it starts, in characters"
            )
        if not context.startswith(text, start):
            raise ValueError(f"answer {text!r} is not at character {start} of the context; mend answer_start")


def first(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all."""
    return rows.select(range(min(limit or len(rows), len(rows))))


def load_splits(
    args: Training, hub: tuple[str, str | None], columns: Columns, labels: int | None,
    limits: Mapping[str, int | None], optional: tuple[str, ...] = (),
) -> dict[str, Dataset]:  # fmt: skip
    """`columns` of the splits that `limits` names, each cut to its limit: of --dataset_path, or of the Hub's `hub`.

    labels: how many classes `label` has, or None. A local file of an `optional` split may be missing; its split is
    then left out. Raises BadInput.
    """
    directory = local_directory(args.task, args.dataset_path)
    if directory is None:
        whole = load_hub(*hub)
        return {split: first(whole[split].select_columns([*columns]), limit) for split, limit in limits.items()}
    wanted = [split for split in limits if split not in optional or any(directory.glob(f"{split}.jsonl*"))]
    return {split: load_local(local_file(directory, split), columns, labels, limits[split]) for split in wanted}


def load_local(path: Path, columns: Columns, labels: int | None, limit: int | None) -> Dataset:
    """The file's rows as an Arrow dataset in the `datasets` cache, the first `limit` of them. Raises BadInput."""
    if next(read_rows(path, columns, labels), None) is None:
        raise BadInput(f"--dataset_path {path}: holds no rows; write one JSON object a line")
    rows = materialize(
        lambda: read_rows(path, columns, labels),
        fingerprint(files.sha256(path), columns, labels),
        Features({name: ANSWERS if kind == "answers" else Value(kind) for name, kind in columns.items()}),
    )
    return first(rows, limit)


def fingerprint(*key: Any) -> str:
    """A name in the `datasets` cache for what `key` fixes."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def materialize(rows: Callable[[], Iterable[dict]], key: str, features: Features | None = None) -> Dataset:
    """Write `rows()` to the `datasets` cache under `key`, once, by the main process. Raises the BadInput of a row."""
    with PartialState().main_process_first():
        return cached(lambda key: Dataset.from_generator(rows, features=features, fingerprint=key), key)


def cached(make: Callable[[str], Dataset], key: str) -> Dataset:
    """What `make` keeps in the `datasets` cache under `key`, or beside that where it is damaged.

    Raises the BadInput of a row, and BadInput where the cache cannot be written.
    """
    spare = fingerprint(key, "spare")
    for name in (key, spare):
        try:
            rows = make(name)
            check_ends(rows)
            return rows
        except Exception as problem:  # damage makes `datasets` and Arrow raise many kinds
            wrapped = isinstance(problem, DatasetGenerationError) and problem.__cause__
            cause = wrapped or problem
            number = cause.errno if isinstance(cause, OSError) else None  # Arrow's have none
            is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(words in str(cause) for words in FULL)
            if number and not is_full:
                raise BadInput(
                    f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}: cannot be used "
                    f"({first_line(cause)}); set it to a directory that can be written"
                ) from problem
            if is_full:
                raise Stopped(
                    f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}: is full ({first_line(cause)}); free some "
                    "room, or set it to another directory"
                ) from problem
            if isinstance(cause, BadInput) or name == spare:
                raise cause from None
            why = first_line(problem)
            log.warning("an entry of the datasets cache is damaged (%s), and is made anew", why)
    raise AssertionError("unreachable")


def check_ends(rows: Dataset) -> None:
    """Raise ValueError where a file of `rows` was not written to its end, or is no table."""
    for file in rows.cache_files:
        with open(file["filename"], "rb") as content:
            content.seek(max(0, os.path.getsize(file["filename"]) - len(END)))
            if content.read() != END:
                raise ValueError(f"{file['filename']} is cut")
    rows.data.validate(full=True)


def settle_for_cache(path: str, kind: str) -> None:
    """Where the Hub cannot be reached or fails, go offline: the cache is asked at once, without minutes of retries."""
    try:
        HfApi().repo_info(path, repo_type=kind, timeout=10)
        return
    except HfHubHTTPError as problem:
        if problem.response.status_code < 500:
            return  # the Hub answered; what it said is for the loading code to tell
    except Exception:
        pass
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


def load_hub(path: str, name: str | None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """`datasets.load_dataset`, failing in seconds where there is no network and nothing is cached. Raises BadInput."""
    settle_for_cache(path, "dataset")
    try:
        return datasets.load_dataset(path, name, streaming=streaming)
    except Exception as problem:
        raise BadInput(f"dataset {path}: cannot be had from the Hub ({first_line(problem)}); {NO_NETWORK}") from problem


NO_NETWORK = (
    "check the network, or use --preset demo, or local files with --model_name_or_path DIR and --dataset_path DIR"
)


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
    key = fingerprint(rows._fingerprint, function.__qualname__, tokens.key(tokenizer), sorted(arguments.items()))

    def make(key: str) -> Dataset:
        options = {"fn_kwargs": {"tokenizer": tokenizer, **arguments}, "remove_columns": rows.column_names}
        return rows.map(function, batched=True, new_fingerprint=key, **options)

    with PartialState().main_process_first():
        return cached(make, key)
