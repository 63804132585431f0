"""Rows of local data: their columns, each checked."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from lth_scale.tasks.jsonl import parse_rows

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
SURROGATE = re.compile("[\ud800-\udfff]")
SHOWN_CHARACTERS = 60


def features(columns: Columns) -> Features:
    """The columns as `datasets` declares them."""
    return Features(
        {name: ANSWERS if kind == "answers" else Value(kind) for name, kind in columns.items()}
    )


def read_rows(path: Path, columns: Columns, bounds: Bounds | None = None) -> Iterator[dict]:
    """Read the `columns` of a JSON Lines file, or of one JSON array, and check each value.

    bounds: of the column `label`, or None. Unpaired surrogates become U+FFFD. Raises BadInput with
    the number of the line.
    """
    return parse_rows(path, lambda row: _checked_row(row, columns, bounds))


def shown(value: Any) -> str:
    """A JSON value for a message; a long string is shortened to its first words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or len(text) <= SHOWN_CHARACTERS:
        return text
    words = textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" …")
    return words if words != "…" else f"a string of {len(value)} characters"


def _checked_row(row: Any, columns: Columns, bounds: Bounds | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object; write one object per line, with the Hub's columns")
    for column, kind in columns.items():
        _check_column(row, column, kind, columns)
    checked = {column: _without_surrogates(row[column]) for column in columns}
    if "answers" in checked:
        checked["answers"] = _checked_answers(row["answers"], checked["context"])
    if bounds and not bounds[0] <= row["label"] <= bounds[1]:
        raise ValueError(
            f"label {shown(row['label'])} is out of range {bounds[0]} … {bounds[1]}; "
            "correct it, or remove the row"
        )
    return checked


def _check_column(row: dict[str, Any], column: str, kind: str, columns: Columns) -> None:
    expected, types = TYPES[kind]
    if column not in row:
        nested = " (rows are nested in 'data': write each on its own line)" if "data" in row else ""
        raise ValueError(
            f"column {column!r} is missing{nested}; the Hub's columns are {', '.join(columns)}"
        )
    if not isinstance(row[column], types) or isinstance(row[column], bool):
        raise ValueError(f"column {column!r} is {shown(row[column])}; it must be {expected}")


def _without_surrogates(value: Any) -> Any:
    """A string with U+FFFD in place of each unpaired surrogate; any other value as it is."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def _checked_answers(answers: dict[str, Any], context: str) -> dict[str, list]:
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError(
            "column 'answers' needs 'text' and 'answer_start': write two lists of equal length"
        )
    if not texts:
        raise ValueError(
            "column 'answers' is empty, and SQuAD v1.1 has at least one answer; remove such rows"
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
