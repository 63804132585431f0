"""The files of records for MLflow: the journal `mlflow.jsonl`, and in `mlflow.json` how far it was sent.

Both may be damaged, or be another program's. What cannot be read is passed over, what is not ours is left alone.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

BEGINNING = b'{"event": "parent", '
NUMBER = (int, float)
EVENTS: dict[str, dict[str, Any]] = {  # the fields that each has at least
    "parent": {"key": str, "name": str, "tags": dict, "params": dict},
    "reopen": {},
    "start": {"key": str, "stage": str, "name": str, "tags": dict},
    "loss": {"stage": str, "step": int, "loss": NUMBER},
    "usage": {"stage": str, "step": int, "metrics": dict},
    "end": {"stage": str, "step": int, "metrics": dict, "curve": dict},
    "finish": {"key": str, "pictures": dict, "table": str},
}


@dataclass(frozen=True)
class JournalLine:
    """A record, and the bytes of the journal that it takes. The record of a line that cannot be read is empty."""

    start: int
    end: int
    record: dict[str, Any]


def read(path: Path, start: int = 0) -> Iterator[JournalLine]:
    """The lines from an offset on, without a last one that has no end."""
    with open(path, "rb") as file:
        file.seek(start)
        for text in file:
            if text.endswith(b"\n"):
                yield JournalLine(start, start := start + len(text), _parsed(text))


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def whole_length(path: Path) -> int:
    """The bytes of a journal without what a crash has left at its end: a torn line, and one that cannot be read."""
    end, readable = 0, True
    for line in read(path):
        if line.record or not readable:
            end = line.end
        readable = bool(line.record)
    return end


def is_event(record: Mapping[str, Any]) -> bool:
    """True for a record that a tracker writes: a known event, with its fields."""
    kinds = EVENTS.get(str(record.get("event")))
    if (
        kinds is None
        or not isinstance(record.get("time"), int)
        or not str(record.get("key", "0")).isalnum()
    ):
        return False
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def check(path: Path) -> None:
    """Raise ValueError, saying why, where a journal cannot be gone on with. Changes nothing."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
            raise ValueError(
                "is a link, and another file would be written; put a copy in its place"
            )
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is not a file")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ValueError("cannot be read and written")
        with open(path, "rb") as file:
            text = file.readline(len(BEGINNING))
    except FileNotFoundError:
        return
    torn = BEGINNING.startswith(text) and next(read(path), None) is None
    first = next((line.record for line in read(path) if is_event(line.record)), {})
    if not torn and first.get("event") != "parent":
        raise ValueError("does not begin as a journal of lth_scale does")


def read_notes(path: Path) -> dict[str, Any] | None:
    """The notes beside a journal; None where there are none, or none of ours."""
    try:
        notes = json.loads(path.read_text()) if stat.S_ISREG(os.lstat(path).st_mode) else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(notes, dict) or type(notes.get("sent", 0)) is not int or "store" not in notes:
        return None
    return (
        notes
        if all(isinstance(value, str) for name, value in notes.items() if name != "sent")
        else None
    )


def ends_a_line(path: Path, offset: int) -> bool:
    """True for the beginning of a journal, and for the offset at which one of its lines has ended."""
    if offset <= 0:
        return offset == 0
    with open(path, "rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def set_aside(path: Path) -> Path | None:
    """Give a file of notes that are not ours another name, which is returned; None where all is well."""
    if not os.path.lexists(path) or read_notes(path):
        return None
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    other = next(name for name in names if not os.path.lexists(name))
    path.rename(other)
    return other
