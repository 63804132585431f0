"""Files of rows as tables: CSV, TSV, JSON, JSON Lines, Parquet, Arrow and text, also compressed.

Values arrive as they are written: columns of CSV are strings, and nothing is taken for a missing
value, a number or a date.
"""

import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import ipc, parquet

from lth_scale.config import files
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.tasks.locations import FORMATS, file_format
from lth_scale.tasks.rows import SIGNATURES, decode_object, json_values, shown, without_surrogates

CHUNK = 10_000  # rows that are Python objects at once
DELIMITERS = {"csv": ",", "tsv": "\t"}
OTHER_DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
LONGEST_CELL = 2**31 - 1  # characters
LONGEST_NAME = 80  # characters of a column's name, above which it looks like a text


def read_table(path: Path, flag: str) -> pyarrow.Table:
    """Read a file of rows. Raises BadInput if it is not valid; flag: names the file in messages."""
    name = f"--{flag} {path}"
    read = _READERS.get(file_format(path))
    if read is None:
        raise BadInput(f"{name}: unknown format; use {', '.join(FORMATS)}, also as .gz or .xz")
    try:
        files.check_regular(path)
        table = read(path)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, OSError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"{name}: cannot be read ({reason}); use a complete file") from None
    except pyarrow.ArrowException as error:
        raise BadInput(f"{name}: cannot be read ({first_line(error)}); write it again") from None
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from None
    if table.num_rows == 0:
        raise BadInput(f"{name}: no rows; use a file that has some")
    return table


def looks_like_data(names: Iterable[str]) -> bool:
    """True if the names of columns look like a row of data: the header may be missing."""
    return any(
        not name.strip() or len(name) > LONGEST_NAME or _is_number(name.strip()) for name in names
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open(path: Path) -> AbstractContextManager[IO[bytes]]:
    by_ending: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    return by_ending.get(path.suffix.lower(), open)(path, "rb")  # type: ignore[no-any-return]


def _text(file: IO[bytes]) -> io.TextIOWrapper:
    """The file as UTF-8 text, line endings unchanged. Raises ValueError if it is something else."""
    start = file.read(8)
    for signature, encoding in SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(f"is {encoding}, not text in UTF-8; convert or rename the file")
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig", newline="")


def _whole_text(file: IO[bytes]) -> str:
    """As `_text`, but all of it, and the file stays open."""
    reader = _text(file)
    try:
        return reader.read()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"not UTF-8 (byte 0x{byte:02x}); convert the file") from None
    finally:
        reader.detach()


def _read_csv(path: Path) -> pyarrow.Table:
    delimiter = DELIMITERS[file_format(path)]
    with _open(path) as file:
        rows = _csv_rows(_text(file), delimiter)
        header = next(rows, [])
        _check_header(header, delimiter)
        return _table((_record(header, row, n) for n, row in enumerate(rows, 1)), header)


def _csv_rows(lines: io.TextIOWrapper, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        yield from (row for row in reader if row)  # blank lines are []
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num}: {error}; close each quote, and double quotes inside it"
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"after line {reader.line_num}: not UTF-8 (byte 0x{byte:02x}); convert the file"
        ) from None


def _check_header(header: list[str], delimiter: str) -> None:
    """Raise ValueError for column names that are repeated or separated by something else."""
    name, count = Counter(header).most_common(1)[0] if header else ("", 0)
    if count > 1:
        raise ValueError(f"column {shown(name)} is there {count} times; rename one of them")
    others = (kind for character, kind in OTHER_DELIMITERS.items() if character in "".join(header))
    if len(header) == 1 and (kind := next(others, "")):
        ours = OTHER_DELIMITERS[delimiter]
        raise ValueError(
            f"its first row, {shown(header[0])}, has {kind} and no {ours}; separate columns by "
            f"{ours}, or name the file .{'csv' if kind == 'commas' else 'tsv'}"
        )


def _record(header: list[str], row: list[str], number: int) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(
            f"row {number} has {len(row)} values, and the first row names {len(header)} columns; "
            "quote values that contain the delimiter"
        )
    return dict(zip(header, row, strict=True))


def _read_json(path: Path) -> pyarrow.Table:
    with _open(path) as file:
        return _table(_json_rows(path, file))


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of JSON Lines or of an array; those in "data" of a single object."""
    if file_format(path) == "json" and ".jsonl" not in path.name.lower():
        if (document := decode_object(_whole_text(file))) is not None:
            yield from _nested_rows(document)
            return
        file.seek(0)
    for number, (line, value) in enumerate(json_values(file), 1):
        if not isinstance(value, dict):
            raise ValueError(f"row {number} (line {line}): not a JSON object; write one per row")
        yield without_surrogates(value)


def _nested_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of {"data": …}: a list of rows, or of SQuAD's articles."""
    data = document.get("data")
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise ValueError('is one JSON object without rows; write an array of them, or {"data": []}')
    for number, entry in enumerate(data, 1):
        if "paragraphs" not in entry:
            yield without_surrogates(entry)
            continue
        try:
            yield from map(without_surrogates, _questions(entry))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"article {number} of 'data': {first_line(error)} is missing or of another type; "
                "use SQuAD's form: title, paragraphs, context, qas, id, question, answers"
            ) from None


def _questions(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of an article of SQuAD, as flat rows."""
    for paragraph in article["paragraphs"]:
        for question in paragraph["qas"]:
            answers = question.get("answers")  # questions to predict have none
            yield {
                "id": str(question["id"]),
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": answers
                if answers is None
                else {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }


def _read_text(path: Path) -> pyarrow.Table:
    """A column `text` with the lines, blank ones included."""
    with _open(path) as file:
        text = _whole_text(file)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return pyarrow.table({"text": pyarrow.array(lines, pyarrow.large_string())})


def _read_parquet(path: Path) -> pyarrow.Table:
    with _open(path) as file:
        return parquet.read_table(io.BytesIO(file.read()))


def _read_arrow(path: Path) -> pyarrow.Table:
    with _open(path) as file:
        content = file.read()
    try:
        return ipc.open_stream(content).read_all()
    except pyarrow.ArrowInvalid:
        return ipc.open_file(content).read_all()


_READERS: dict[str, Callable[[Path], pyarrow.Table]] = {
    **{"csv": _read_csv, "tsv": _read_csv, "json": _read_json, "text": _read_text},
    **{"parquet": _read_parquet, "arrow": _read_arrow},
}


def _table(rows: Iterator[dict[str, Any]], columns: Iterable[str] = ()) -> pyarrow.Table:
    """The rows as a table, whose columns have one type each. Raises ValueError."""
    tables, first, names = list[pyarrow.Table](), 1, dict.fromkeys(columns)
    while chunk := [*islice(rows, CHUNK)]:
        names |= dict.fromkeys(name for row in chunk for name in row)
        arrays = {name: _column(name, chunk, first) for name in names}
        tables.append(pyarrow.table(arrays))
        first += len(chunk)
    if not tables:
        return pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in names})
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"a column has values of several types ({first_line(error)}); use one"
        ) from None


def _column(name: str, rows: list[dict[str, Any]], first: int) -> pyarrow.Array:
    """A column of rows, of which the first has the number `first`. Raises ValueError."""
    values = [row.get(name) for row in rows]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        kinds = [type(value) for value in values]
        usual = Counter(kind for kind in kinds if kind is not type(None)).most_common(1)[0][0]
        others = (i for i, kind in enumerate(kinds) if kind not in (usual, type(None)))
        at = next(others, 0)
        raise ValueError(
            f"column {name!r}, row {first + at}: {json.dumps(values[at])[:60]} is of another type "
            "than the other values; use one type"
        ) from None
