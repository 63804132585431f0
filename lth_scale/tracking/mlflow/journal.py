"""The journal of a run's records for MLflow, and its progress: `mlflow.jsonl` and `mlflow.json`.

The journal has one JSON object a line. It may be damaged, or belong to another program: lines that
cannot be read are skipped, and files that lth_scale did not write are never changed.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from lth_scale.config import files

NAME = "mlflow.jsonl"
FIRST_BYTES = b'{"event": "parent", '
NUMBER = (int, float)
Record = dict[str, Any]
# The fields that each event has at least.
EVENTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "parent": {"key": str, "name": str, "tags": dict, "params": dict},
    "reopen": {},
    "start": {"key": str, "stage": str, "name": str, "tags": dict},
    "loss": {"stage": str, "step": int, "loss": NUMBER},
    "usage": {"stage": str, "step": int, "metrics": dict},
    "end": {"stage": str, "step": int, "metrics": dict, "curve": dict},
    "finish": {"key": str, "pictures": dict, "table": str},
}
POINTS = ("loss", "usage")  # events that hold nothing but points of metrics


@dataclass(frozen=True)
class JournalLine:
    """A record, empty if the line is unreadable, and its byte range in the journal."""

    start: int
    end: int
    record: Record


def read(path: Path, start: int = 0) -> Iterator[JournalLine]:
    """Yield the lines from a byte offset on, except an unterminated last one."""
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
    return (
        fields is not None
        and isinstance(record.get("time"), int)
        and str(record.get("key", "0")).isalnum()
        and all(isinstance(record.get(name), types) for name, types in fields.items())
    )


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
    """List the journals of an output directory: one of a search, or one per seed of a transfer."""
    paths = [output_dir / NAME, *sorted(output_dir.glob(f"seeds/*/{NAME}"))]
    return [path for path in paths if os.path.lexists(path)]


@dataclass
class Progress:
    """The progress of a journal's delivery to one store.

    sent: the byte offset up to which records are known to be delivered.
    experiment: the id of the experiment; empty if unknown. runs: run ids by stage, and `parent`.
    """

    store: str
    sent: int = 0
    experiment: str = ""
    runs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Progress | None":
        """Read mlflow.json; None if it is missing, damaged or was not written by lth_scale."""
        try:
            fields = json.loads(path.read_text()) if stat.S_ISREG(os.lstat(path).st_mode) else {}
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(fields, dict) or "store" not in fields:
            return None
        sent = fields.pop("sent", -1)
        if type(sent) is not int or not all(isinstance(value, str) for value in fields.values()):
            return None
        return cls(fields.pop("store"), sent, fields.pop("experiment", ""), fields)

    def write(self, path: Path) -> None:
        """Write mlflow.json."""
        experiment = {"experiment": self.experiment} if self.experiment else {}
        files.write_json(path, {"store": self.store, "sent": self.sent, **experiment, **self.runs})


def quarantine(path: Path) -> Path | None:
    """Rename a file that `Progress.read` rejects and return its new name; None if it is valid."""
    if not os.path.lexists(path) or Progress.read(path):
        return None
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    unused = next(name for name in names if not os.path.lexists(name))
    return path.rename(unused)
