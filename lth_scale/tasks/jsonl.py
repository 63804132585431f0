"""Rows of JSONL files, checked one by one."""

import json
import lzma
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import List, Value

from lth_scale.config.errors import BadInput

Columns = Mapping[
    str, str
]  # column → "string", "int64" or "float32", the dtypes of `datasets`, or "answers", SQuAD's
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
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}


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
        raise BadInput(
            f"--dataset_path {path}: cannot be read to its end ({problem}); write it again"
        ) from problem
    except ValueError as problem:
        raise BadInput(f"--dataset_path {path}: {problem}") from None


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, however lines end, without marks of byte order. Raises ValueError."""
    number = 0
    for piece in file:
        if number == 0 and (
            form := next((form for mark, form in FORMS.items() if piece.startswith(mark)), "")
        ):
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
                raise ValueError(
                    f"line {number} is not UTF-8 (byte 0x{byte:02x}); convert the file"
                ) from None


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
        raise _no_json(
            line, "nested too deeply" if deep else str(problem).partition(":")[0]
        ) from None


def _no_json(line: int, why: str) -> ValueError:
    return ValueError(f"line {line} is no JSON ({why}); write one whole object a line")


def _after_blanks(text: str, at: int) -> int:
    found = BLANK.match(text, at)
    return found.end() if found else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(
            f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice"
        )
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_row(row: Any, columns: Columns, labels: Bounds | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("is no JSON object; write one object a line, with the Hub's columns")
    for column, kind in columns.items():
        name, types = KINDS[kind]
        if column not in row:
            inside = (
                ", and rows are in 'data'; write each in a line of its own" if "data" in row else ""
            )
            raise ValueError(
                f"column {column!r} is missing{inside}; the Hub's columns are {', '.join(columns)}"
            )
        if not isinstance(row[column], types) or isinstance(row[column], bool):
            raise ValueError(f"column {column!r} holds {shown(row[column])}; it should be {name}")
    checked = {column: _mended(row[column]) for column in columns}
    if "answers" in checked:
        checked["answers"] = _check_answers(row["answers"], checked["context"])
    if labels and not labels[0] <= row["label"] <= labels[1]:
        low, high = labels
        raise ValueError(
            f"label {shown(row['label'])} is not within {low} … {high}; mend it, or remove the row"
        )
    return checked


def shown(value: Any) -> str:
    """A value of JSON in a message, of a long text its first words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    words = (
        textwrap.shorten(text, 60, placeholder=" …")
        if isinstance(value, str) and len(text) > 60
        else text
    )
    return words if words != "…" else f"a text of {len(value)} characters"


def _mended(value: Any) -> Any:
    """A text with U+FFFD for each half of a surrogate pair, which is no text; another value as it is."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _check_answers(answers: dict[str, Any], context: str) -> dict[str, list]:
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError("column 'answers' needs 'text' and 'answer_start', lists of one length")
    if not texts:
        raise ValueError(
            "column 'answers' has no answer, and SQuAD v1.1 has one or more; remove such rows"
        )
    texts = [_mended(text) for text in texts]
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise ValueError(
                f"answer {shown(text)} at {shown(start)}; give a text that is not empty and where it starts, "
                "in characters"
            )
        if not context.startswith(text, start):
            raise ValueError(
                f"answer {shown(text)} is not at character {start} of the context; mend answer_start"
            )
    return {"text": texts, "answer_start": starts}
