"""Rows of a task: from JSON lines in the Hub's own columns, from the package, or from the Hub."""

import errno
import hashlib
import json
import logging
import lzma
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, List, Value
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from pyarrow import compute

from lth_scale import files
from lth_scale.arguments import FULL, BadInput, Stopped, Training, first_line
from lth_scale.provenance import data_file, local_directory
from lth_scale.tasks import tokens

log = logging.getLogger("lth_scale")

Columns = Mapping[str, str]  # column → "string", "int64" or "float32", the dtypes of `datasets`, or "answers", SQuAD's
Bounds = tuple[float, float]  # the least and the greatest label
KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a text", (str,)),
    "int64": ("an integer", (int,)),
    "float32": ("a number", (float, int)),
    "answers": ("an object", (dict,)),
}
FORMS = {  # how files begin that are no text in UTF-8
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "packed by gzip",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"BZh": "packed by bzip2",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "Parquet",
}
BOM = b"\xef\xbb\xbf"  # of UTF-8
BLANK, SURROGATE = re.compile(r"\s*"), re.compile("[\ud800-\udfff]")
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow's
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}


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
        raise BadInput(f"--dataset_path {path}: {problem.strerror}; put a file of JSON lines there") from None
    return path


def read_rows(path: Path, columns: Columns, labels: Bounds | None) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, or of one JSON array; only `columns`, each checked.

    labels: what `label` lies within, or None. Half a surrogate pair becomes U+FFFD. Raises BadInput with the line.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for number, value in _values(_lines(file)):
                try:
                    row = _check_row(value, columns, labels)
                except ValueError as problem:
                    raise ValueError(f"line {number}: {problem}") from None
                yield row
    except (EOFError, lzma.LZMAError, OSError) as problem:
        raise BadInput(f"--dataset_path {path}: cannot be read to its end ({problem}); write it again") from problem
    except ValueError as problem:
        raise BadInput(f"--dataset_path {path}: {problem}") from None


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, however lines end, without marks of byte order. Raises ValueError."""
    number = 0
    for piece in file:
        if number == 0 and (form := next((form for mark, form in FORMS.items() if piece.startswith(mark)), "")):
            raise ValueError(f"is {form}, and no JSON lines in UTF-8; convert it")
        for line in piece.splitlines():
            number += 1
            if b"\0" in line:
                raise ValueError(
                    f"line {number} holds NUL bytes, as UTF-16 and files cut by a crash do; write it again"
                )
            try:
                yield number, line.removeprefix(BOM).decode()
            except UnicodeDecodeError as problem:
                byte = line.removeprefix(BOM)[problem.start]
                raise ValueError(f"line {number} is not UTF-8 (byte 0x{byte:02x}); convert the file") from None


def _values(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line that is not blank, or of every element where the file is one array."""
    texts = ((number, text.strip()) for number, text in lines if text.strip())
    for count, (number, text) in enumerate(texts):
        if count == 0 and text.startswith("["):
            yield from _elements(number, "\n".join([text, *(text for _, text in lines)]))
            return
        value, end = _decode(number, text, 0)
        if end < len(text):
            raise _no_json(number, "Extra data")
        yield number, value


def _elements(number: int, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of every element of an array, which is all of `text` and begins in line `number`."""
    if text[1:].strip() == "]":
        return
    counted, at, mark = 0, 1, ","
    while mark == ",":
        at = _after_blanks(text, at)
        number, counted = number + text.count("\n", counted, at), at
        value, at = _decode(number, text, at)
        yield number, value
        mark, at = text[at : at + 1], at + 1
    if mark != "]" or text[at:].strip():
        why = "Extra data" if mark == "]" else "Expecting ',' delimiter"
        raise _no_json(number + text.count("\n", counted, _after_blanks(text, at)), why)


def _decode(number: int, text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins in `text` at `start`, which is in line `number`, and where what follows it begins."""
    try:
        value, end = DECODER.raw_decode(text, start)
        return value, _after_blanks(text, end)
    except (ValueError, RecursionError) as problem:
        line = number + text.count("\n", start, getattr(problem, "pos", start))
        deep = isinstance(problem, RecursionError)
        raise _no_json(line, "nested too deeply" if deep else str(problem).partition(":")[0]) from None


def _no_json(line: int, why: str) -> ValueError:
    return ValueError(f"line {line} is no JSON ({why}); write one whole object a line")


def _after_blanks(text: str, at: int) -> int:
    found = BLANK.match(text, at)
    return found.end() if found else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_row(row: Any, columns: Columns, labels: Bounds | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("is no JSON object; write one object a line, with the Hub's columns")
    for column, kind in columns.items():
        name, types = KINDS[kind]
        if column not in row:
            inside = ", and rows are in 'data'; write each in a line of its own" if "data" in row else ""
            raise ValueError(f"column {column!r} is missing{inside}; the Hub's columns are {', '.join(columns)}")
        if not isinstance(row[column], types) or isinstance(row[column], bool):
            raise ValueError(f"column {column!r} holds {shown(row[column])}; it should be {name}")
    checked = {column: _mended(row[column]) for column in columns}
    if "answers" in checked:
        checked["answers"] = _check_answers(row["answers"], checked["context"])
    if labels and not labels[0] <= row["label"] <= labels[1]:
        low, high = labels
        raise ValueError(f"label {shown(row['label'])} is not within {low} … {high}; mend it, or remove the row")
    return checked


def shown(value: Any) -> str:
    """A value of JSON in a message, of a long text its first words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    words = textwrap.shorten(text, 60, placeholder=" …") if isinstance(value, str) and len(text) > 60 else text
    return words if words != "…" else f"a text of {len(value)} characters"


def _mended(value: Any) -> Any:
    """A text with U+FFFD for each half of a surrogate pair, which is no text; another value as it is."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _check_answers(answers: dict[str, Any], context: str) -> dict[str, list]:
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError("column 'answers' needs 'text' and 'answer_start', lists of one length")
    if not texts:
        raise ValueError("column 'answers' has no answer, and SQuAD v1.1 has one or more; remove such rows")
    texts = [_mended(text) for text in texts]
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise ValueError(
                f"answer {shown(text)} at {shown(start)}; give a text that is not empty and where it starts, "
                "in characters"
            )
        if not context.startswith(text, start):
            raise ValueError(f"answer {shown(text)} is not at character {start} of the context; mend answer_start")
    return {"text": texts, "answer_start": starts}


def first(rows: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all."""
    return rows.select(range(min(limit or len(rows), len(rows))))


def load_splits(
    args: Training, hub: tuple[str, str | None], columns: Columns, labels: Bounds | None,
    limits: Mapping[str, int | None], optional: tuple[str, ...] = (),
) -> dict[str, Dataset]:  # fmt: skip
    """`columns` of the splits that `limits` names, each cut to its limit: of --dataset_path, or of the Hub's `hub`.

    labels: what `label` lies within, or None. A local file of an `optional` split may be missing; its split is
    then left out. Raises BadInput.
    """
    directory = local_directory(args.task, args.dataset_path)
    if directory is None:
        whole = load_hub(*hub)
        splits = {split: first(whole[split].select_columns([*columns]), limit) for split, limit in limits.items()}
        for split, rows in splits.items():
            check_labels(f"dataset {hub[0]}: {split}", rows, labels)
        return splits
    wanted = [split for split in limits if split not in optional or any(directory.glob(f"{split}.jsonl*"))]
    return {split: load_local(local_file(directory, split), columns, labels, limits[split]) for split in wanted}


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
