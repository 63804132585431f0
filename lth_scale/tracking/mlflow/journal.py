"""The journal of a run's records for MLflow: `mlflow.jsonl`, one JSON object a line.

The file may be damaged, or belong to another program: lines that cannot be read are skipped, and
files that lth_scale did not write are never changed.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "mlflow.jsonl"
FIRST_BYTES = b'{"event": "parent", '
NUMBER = (int, float)
Record = dict[str, Any]
Types = type | tuple[type, ...]
# The fields that each event has at least.
EVENTS: dict[str, dict[str, Types]] = {
    "parent": {"key": str, "name": str, "tags": dict, "params": dict},
    "reopen": {},
    "start": {"key": str, "stage": str, "name": str, "tags": dict},
    "loss": {"stage": str, "step": int, "loss": NUMBER},
    "usage": {"stage": str, "step": int, "metrics": dict},
    "end": {"stage": str, "step": int, "metrics": dict, "curve": dict},
    "finish": {"key": str, "pictures": dict, "table": str},
}
POINTS = ("loss", "usage")  # events that hold nothing but points


@dataclass(frozen=True)
class JournalLine:
    """A record and its byte range in the journal. The record is empty if the line is unreadable."""

    start: int
    end: int
    record: Record


def read(path: Path, start: int = 0) -> Iterator[JournalLine]:
    """Yield the lines from a byte offset on, without an unterminated last one."""
    with open(path, "rb") as file:
        file.seek(start)
        for text in file:
            if text.endswith(b"\n"):
                yield JournalLine(start, start := start + len(text), _parse(text))


def _parse(text: bytes) -> Record:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def events(path: Path) -> Iterator[JournalLine]:
    """Yield the lines that hold a known event."""
    return (line for line in read(path) if is_event(line.record))


def is_event(record: Record) -> bool:
    """True for a record that a tracker writes: a known event with its fields."""
    fields = EVENTS.get(str(record.get("event")))
    if fields is None or not isinstance(record.get("time"), int):
        return False
    if not str(record.get("key", "0")).isalnum():
        return False
    return all(isinstance(record.get(name), types) for name, types in fields.items())


def valid_length(path: Path) -> int:
    """Return the size in bytes without what a crash left: a torn or unreadable last line."""
    end, readable = 0, True
    for line in read(path):
        if line.record or not readable:
            end = line.end
        readable = bool(line.record)
    return end


def is_line_end(path: Path, offset: int) -> bool:
    """True for the start of a journal and for an offset at which one of its lines ends."""
    if offset <= 0:
        return offset == 0
    with open(path, "rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def check(path: Path) -> None:
    """Raise ValueError with the reason if the journal cannot be continued. Changes nothing."""
    try:
        status = os.lstat(path)
        is_file = stat.S_ISREG(status.st_mode)
        if stat.S_ISLNK(status.st_mode) or (is_file and status.st_nlink > 1):
            raise ValueError("is a link, and its target would be changed")
        if not is_file:
            raise ValueError("is not a file")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ValueError("cannot be read and written")
        with open(path, "rb") as file:
            text = file.readline(len(FIRST_BYTES))
    except FileNotFoundError:
        return
    is_torn = FIRST_BYTES.startswith(text) and next(read(path), None) is None
    first = next(events(path), None)
    if not is_torn and (first is None or first.record["event"] != "parent"):
        raise ValueError("was not written by lth_scale")


def journals(output_dir: Path) -> list[Path]:
    """List the journals below an output directory: one of a search, one per seed of a transfer."""
    paths = [output_dir / NAME, *sorted(output_dir.glob(f"seeds/*/{NAME}"))]
    return [path for path in paths if os.path.lexists(path)]
