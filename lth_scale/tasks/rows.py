"""JSON Lines files, read and checked value by value; errors name the line."""

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief

# Column → "string", "int64" or "float32" (dtypes of `datasets`), or "answers" (SQuAD's).
Columns = Mapping[str, str]
Bounds = tuple[float, float]  # the smallest and the largest label
TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a string", (str,)),
    "int64": ("an integer", (int,)),
    "float32": ("a number", (float, int)),
    "answers": ("an object", (dict,)),
}
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
# First bytes of files that are not UTF-8 text.
SIGNATURES = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
}
UTF8_BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile("[\ud800-\udfff]")
BLANKS = re.compile(r"\s*")
SHOWN_CHARACTERS = 60


def features(columns: Columns) -> Features:
    """The columns as `datasets` declares them."""
    return Features(
        {name: ANSWERS if kind == "answers" else Value(kind) for name, kind in columns.items()}
    )


def shown(value: Any) -> str:
    """A JSON value for a message; a long one is shortened."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else brief(text, SHOWN_CHARACTERS)


def read_rows(path: Path, columns: Columns, bounds: Bounds | None = None) -> Iterator[dict]:
    """Read the `columns` of a JSON Lines file (or its .xz), or of a single JSON array.

    bounds: of the column `label`, or None. Unpaired surrogates become U+FFFD. Raises BadInput with
    the number of the line if the file or a value is not valid.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for number, value in _values(_lines(file)):
                try:
                    row = _checked_row(value, columns, bounds)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                yield row
    except (EOFError, lzma.LZMAError, OSError) as error:
        raise BadInput(
            f"--dataset_path {path}: cannot be read to the end ({error}); write the file again"
        ) from error
    except ValueError as error:
        raise BadInput(f"--dataset_path {path}: {error}") from None


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line, for all line endings, without byte-order marks."""
    number = 0
    for chunk in file:
        for signature, encoding in SIGNATURES.items():
            if number == 0 and chunk.startswith(signature):
                raise ValueError(f"is {encoding}, not JSON Lines in UTF-8; convert the file")
        for line in chunk.splitlines():
            number += 1
            if b"\0" in line:
                raise ValueError(
                    f"line {number}: contains NUL bytes, as UTF-16 and truncated files do; "
                    "write the file again"
                )
            try:
                yield number, line.removeprefix(UTF8_BOM).decode()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ValueError(
                    f"line {number}: not UTF-8 (byte 0x{byte:02x}); convert the file"
                ) from None


def _values(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank, or of every element of an array."""
    texts = ((number, text.strip()) for number, text in lines if text.strip())
    for count, (number, text) in enumerate(texts):
        if count == 0 and text.startswith("["):
            yield from _elements(number, "\n".join([text, *(text for _, text in lines)]))
            return
        value, end = _decode_value(number, text, 0)
        if end < len(text):
            raise _invalid(number, "Extra data")
        yield number, value


def _elements(number: int, text: str) -> Iterator[tuple[int, Any]]:
    """Line number and value of every element of the array `text`, which starts in line `number`."""
    if text[1:].strip() == "]":
        return
    counted, position, separator = 0, 1, ","
    while separator == ",":
        position = _skip_blanks(text, position)
        number, counted = number + text.count("\n", counted, position), position
        value, position = _decode_value(number, text, position)
        yield number, value
        separator, position = text[position : position + 1], position + 1
    if separator != "]" or text[position:].strip():
        reason = "Extra data" if separator == "]" else "Expecting ',' delimiter"
        raise _invalid(number + text.count("\n", counted, _skip_blanks(text, position)), reason)


def _decode_value(number: int, text: str, start: int) -> tuple[Any, int]:
    """The value at `text[start:]`, which is in line `number`, and the index of what follows it."""
    try:
        value, end = DECODER.raw_decode(text, start)
        return value, _skip_blanks(text, end)
    except RecursionError:
        raise _invalid(number, "nested too deeply") from None
    except ValueError as error:
        line = number + text.count("\n", start, getattr(error, "pos", start))
        raise _invalid(line, str(error).partition(":")[0]) from None


def _invalid(line: int, reason: str) -> ValueError:
    return ValueError(
        f"line {line}: invalid JSON ({reason}); write one complete object on each line"
    )


def _skip_blanks(text: str, position: int) -> int:
    match = BLANKS.match(text, position)
    return match.end() if match else position


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key is repeated."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {key!r}")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def json_values(file: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Line number and value of each line of a JSON Lines file, or element of a single array.

    Raises ValueError with the number of the line.
    """
    return _values(_lines(file))


def decode_object(text: str) -> dict[str, Any] | None:
    """The JSON object that makes up the text and has the key "data", or None.

    Raises ValueError for an object with duplicate keys.
    """
    if not text.lstrip().startswith("{"):
        return None
    value, end = _decode_value(1, text, _skip_blanks(text, 0))
    return value if end == len(text) and "data" in value else None


def without_surrogates(value: Any) -> Any:
    """A JSON value with U+FFFD in place of each unpaired surrogate in its strings."""
    if isinstance(value, list):
        return [without_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {name: without_surrogates(entry) for name, entry in value.items()}
    return _without_surrogates(value)


def _checked_row(row: Any, columns: Columns, bounds: Bounds | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object; write one object per line, with the Hub's columns")
    for column, kind in columns.items():
        if column not in row:
            hint = " (rows are nested in 'data': write each on its own line)"
            raise ValueError(
                f"column {column!r} is missing{hint if 'data' in row else ''}; "
                f"the Hub's columns are {', '.join(columns)}"
            )
        expected, types = TYPES[kind]
        if not isinstance(row[column], types) or isinstance(row[column], bool):
            raise ValueError(f"column {column!r} is {shown(row[column])}; it must be {expected}")
    checked = {column: _without_surrogates(row[column]) for column in columns}
    if "answers" in checked:
        checked["answers"] = checked_answers(row["answers"], checked["context"])
        if not checked["answers"]["text"]:
            raise ValueError(
                "column 'answers' is empty, and SQuAD v1.1 has at least one answer; remove such "
                "rows"
            )
    if bounds and not bounds[0] <= row["label"] <= bounds[1]:
        raise ValueError(
            f"label {shown(row['label'])} is out of range {bounds[0]} … {bounds[1]}; "
            "correct it, or remove the row"
        )
    return checked


def _without_surrogates(value: Any) -> Any:
    """A string with U+FFFD in place of each unpaired surrogate; any other value as it is."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def checked_answers(answers: dict[str, Any], context: str) -> dict[str, list]:
    """The answers to a question, none or more. Raises ValueError if one is not in the context."""
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError(
            "column 'answers' needs 'text' and 'answer_start': write two lists of equal length"
        )
    texts = [_without_surrogates(text) for text in texts]
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise ValueError(
                f"answer {shown(text)} at {shown(start)}: write a non-empty string and its start "
                "in characters"
            )
        if not context.startswith(text, start):
            raise ValueError(
                f"answer {shown(text)} is not at character {start} of the context; "
                "correct answer_start"
            )
    return {"text": texts, "answer_start": starts}
