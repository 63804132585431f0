"""A journal of what is to be recorded in another place, and the thread that sends it: training waits for neither.

A record is one line of JSON in `mlflow.jsonl`. How far they are sent is noted in `mlflow.json`, but afterwards: a
process that was killed, or got no answer, cannot know about the last ones. `doubt` is where that ends. A store that is
down is waited for; one that is `Closed` is not, until somebody has done what the message says.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import reason
from lth_scale.tracking import journal
from lth_scale.tracking.console import say
from lth_scale.tracking.journal import JournalLine
from lth_scale.tracking.mlflow import stores
from lth_scale.tracking.run_directory import RunDirectory

PAUSE = 1.0  # seconds in which records gather, to be sent at once
CHUNK = 1000  # records read at once; no more points go into one request
DELAYS = (0.5, 30.0)  # seconds between attempts: the first, doubled up to the last
PATIENCE = 20.0  # seconds without progress after which the end of a command waits no longer
_open: dict[Path, "JournalSender"] = {}


class Closed(Exception):
    """A store that takes nothing until somebody mends it; the message says why, and how."""


Deliver = Callable[["JournalSender", list[JournalLine]], Iterator[int]]


class JournalSender:
    """One journal. `deliver` sends lines, is the only one to change `notes`, and yields the end of each it has sent.

    It may also set `notes["sent"]` back, and yield nothing: it is given the lines from there on next.
    """

    def __init__(self, path: Path, store: str, deliver: Deliver):
        self.path, self.store, self.deliver = path, without_secrets(store), deliver
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        self.doubt = journal.whole_length(path)
        os.ftruncate(self.file, self.doubt)  # a last line that is torn
        if aside := journal.set_aside(path.with_suffix(".json")):
            say(
                f"MLflow: mlflow.json was damaged or not ours, and is {aside} now; the store is asked what it has"
            )
        self.notes = noted(path, store)
        self.unwritten, self.stopped, self.hurry = b"", False, threading.Event()
        self.down = self.closed = False
        self.thread = threading.Thread(target=self._send, name=f"send {path}", daemon=True)

    def read(self, start: int) -> Iterator[JournalLine]:
        """The whole lines from an offset on."""
        return journal.read(self.path, start)

    def append(self, record: dict[str, Any]) -> None:
        """Write a record down. What a full disk refuses is kept, and written with the next one."""
        self.unwritten += json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        with suppress(OSError):
            self.unwritten = self.unwritten[os.write(self.file, self.unwritten) :]

    def is_sent(self) -> bool:
        """True where nothing waits."""
        return self.notes["sent"] == self.path.stat().st_size and not self.unwritten

    def stop(self) -> None:
        """End the thread, after the call that it is in."""
        self.stopped = True
        self.hurry.set()
        self.thread.join()

    def _send(self) -> None:
        """Send what comes, for ever; after a failure again and again, each time later. One sender at a time."""
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.file, fcntl.LOCK_EX)
        delay = DELAYS[0]
        while not self.stopped:
            lines: list[JournalLine] = []
            try:
                lines = list(islice(self.read(self.notes["sent"]), CHUNK))
                if lines:
                    self._send_lines(lines)
                self._tell_state(None)
                delay, wait = DELAYS[0], 0 if len(lines) == CHUNK else PAUSE
            except Exception as problem:  # MLflow, its stores and the network raise many kinds
                self.doubt = max([self.doubt, *(line.end for line in lines)])
                self._tell_state(problem)
                delay, wait = min(2 * delay, DELAYS[1]), delay
            if self.hurry.wait(wait):
                delay = DELAYS[0]
                self.hurry.clear()
        os.close(self.file)

    def _send_lines(self, lines: list[JournalLine]) -> None:
        os.fsync(self.file)  # the store never knows what the journal may lose
        for end in self.deliver(self, lines):
            self.notes["sent"] = end
            files.write_json(self.path.with_suffix(".json"), self.notes)
            if self.stopped:
                break

    def _tell_state(self, problem: Exception | None) -> None:
        """Say once that the store is down, and once that it is back; with several journals the first and the last."""
        down, closed = bool(problem), isinstance(problem, Closed)
        changed = (down, closed) != (self.down, self.closed)
        if not (
            self.stopped
            or not changed
            or any(box.down for box in list(_open.values()) if box is not self)
        ):
            self._say_state(problem)
        self.down, self.closed = down, closed  # now the end of the command need not wait

    def _say_state(self, problem: Exception | None) -> None:
        if isinstance(problem, Closed):
            kept = f"they are kept in {self.path}, and the same command sends them afterwards"
            say(f"MLflow: {self.store} takes no records; {kept}. {problem}")
        elif problem:
            kept = f"work goes on, they are kept in {self.path} and sent later"
            say(f"MLflow: {self.store} takes no records; {kept}. {reason(problem)}")
        else:
            say(f"MLflow: {self.store} is back, and has the records of {self.path}")


def noted(path: Path, store: str) -> dict[str, Any]:
    """What is known about a journal's runs in a store, and how far they are `sent`.

    Another store gets everything, and so does a database that was deleted.
    """
    notes = journal.read_notes(path.with_suffix(".json")) or {}
    file = stores.database(store)
    mine = notes.get("store") == without_secrets(store) and journal.ends_a_line(
        path, notes.get("sent", -1)
    )
    return (
        notes
        if mine and (file is None or file.exists())
        else {"store": without_secrets(store), "sent": 0}
    )


def start(path: Path, store: str, deliver: Deliver) -> JournalSender:
    """Begin to send a journal. One that this process has begun before is ended first."""
    if path in _open:
        _open.pop(path).stop()
    box = _open[path] = JournalSender(path, store, deliver)
    box.thread.start()
    return box


def send_waiting(record: RunDirectory) -> None:
    """Send what waits below a record's directory, as long as that goes on; say what is left. On the main process."""
    if record.arguments.report_to != "mlflow" or os.environ.get("RANK", "0") != "0":
        return
    store = record.mlflow_store()
    for path in record.journals():
        if path not in _open and noted(path, store)["sent"] < path.stat().st_size:
            from lth_scale.tracking.mlflow.delivery import (
                start_sending,  # imports mlflow, which takes its time
            )

            start_sending(path, store)
    wait(list(_open.values()))
    left = {
        path: sum(1 for _ in box.read(box.notes["sent"]))
        for path, box in _open.items()
        if not box.closed
    }
    _open.clear()
    if sum(left.values()):
        where = ", ".join(str(path) for path, count in left.items() if count)
        say(
            f"MLflow: {sum(left.values())} records wait in {where}; run the same command again to send them"
        )


def wait(boxes: list[JournalSender]) -> None:
    """Until the journals are sent, or nothing has been sent for some time. Ends the threads that are done.

    A store that is closed is not waited for.
    """
    sent, since = -1, time.monotonic()
    for box in boxes:
        box.hurry.set()
    while not all(box.is_sent() or box.closed for box in boxes):
        patience = (
            PATIENCE if any(box.down for box in boxes) else 3 * PATIENCE
        )  # a store may take long to be made
        if time.monotonic() - since > patience:
            break
        time.sleep(0.05)
        if sent != (now := sum(box.notes["sent"] for box in boxes)):
            sent, since = now, time.monotonic()
    for box in boxes:
        box.stopped = True  # and one that hangs in a call ends with the process
        if box.is_sent():
            box.stop()
