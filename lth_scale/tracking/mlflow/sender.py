"""Delivery of journals to a store in a background thread, so that training never waits for it.

Progress is saved after each delivery: a process that was killed or got no reply may deliver some
records again. `JournalSender.replay_end` bounds these records; deduplicating them there makes
delivery exactly once. A store that is down is retried with exponential backoff; after a
`PermanentFailure` the end of a command does not wait for the store.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import reason
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, stores
from lth_scale.tracking.mlflow.failures import PermanentFailure
from lth_scale.tracking.mlflow.journal import JournalLine, Record
from lth_scale.tracking.mlflow.progress import Progress, quarantine

PAUSE = 1.0  # seconds in which records accumulate before they are sent together
CHUNK = 1000  # records that are read at once, and the most points of one request
DELAYS = (0.5, 30.0)  # seconds between attempts: the first, doubled up to the last
PATIENCE = 20.0  # seconds without progress after which the end of a command stops waiting
SENDERS: dict[Path, "JournalSender"] = {}  # of this process, by journal

Deliver = Callable[["JournalSender", list[JournalLine]], Iterator[int]]


class JournalSender:
    """Appends records to one journal and delivers them to a store.

    deliver: sends lines in order and yields the end of each one that was delivered. It alone
    changes `progress`; to rewind it sets `progress.sent` back and yields nothing.
    """

    def __init__(self, path: Path, store: str, deliver: Deliver):
        self.path, self.store, self.deliver = path, without_secrets(store), deliver
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self.descriptor = os.open(path, flags, 0o644)
        self.replay_end = journal.valid_length(path)
        os.ftruncate(self.descriptor, self.replay_end)
        if renamed := quarantine(path.with_suffix(".json")):
            print_line(
                "MLflow: mlflow.json was damaged or not written by lth_scale, and is now "
                f"{renamed}; the store is asked which records it has"
            )
        self.progress = load_progress(path, store)
        self.buffer, self.stopped, self.wake_up = b"", False, threading.Event()
        self.is_failing = self.is_blocked = False
        self.thread = threading.Thread(target=self._run, name=f"send {path}", daemon=True)

    def read(self, start: int) -> Iterator[JournalLine]:
        """Yield the complete lines from a byte offset on."""
        return journal.read(self.path, start)

    def append(self, record: Record) -> None:
        """Append a record. What a full disk rejects is kept and written with the next record."""
        self.buffer += json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        with suppress(OSError):
            self.buffer = self.buffer[os.write(self.descriptor, self.buffer) :]

    def is_sent(self) -> bool:
        """True if no record is waiting."""
        return self.progress.sent == self.path.stat().st_size and not self.buffer

    def stop(self) -> None:
        """Stop the thread after its current request."""
        self.stopped = True
        self.wake_up.set()
        self.thread.join()

    def _run(self) -> None:
        """Deliver new records until stopped. A lock admits one sender of a journal at a time."""
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        delay = DELAYS[0]
        while not self.stopped:
            lines: list[JournalLine] = []
            try:
                lines = list(islice(self.read(self.progress.sent), CHUNK))
                if lines:
                    self._deliver(lines)
                self._report_status(None)
                delay, wait = DELAYS[0], 0 if len(lines) == CHUNK else PAUSE
            except Exception as error:  # MLflow, its stores and the network raise many types
                self.replay_end = max([self.replay_end, *(line.end for line in lines)])
                self._report_status(error)
                delay, wait = min(2 * delay, DELAYS[1]), delay
            if self.wake_up.wait(wait):
                delay = DELAYS[0]
                self.wake_up.clear()
        os.close(self.descriptor)

    def _deliver(self, lines: list[JournalLine]) -> None:
        os.fsync(self.descriptor)  # the store never has records that the journal may lose
        for end in self.deliver(self, lines):
            self.progress.sent = end
            self.progress.write(self.path.with_suffix(".json"))
            if self.stopped:
                break

    def _report_status(self, error: Exception | None) -> None:
        """Print once that the store fails and once that it recovered, not for every journal."""
        status = (bool(error), isinstance(error, PermanentFailure))
        others_fail = any(other.is_failing for other in [*SENDERS.values()] if other is not self)
        if status != (self.is_failing, self.is_blocked) and not (self.stopped or others_fail):
            self._print_status(error)
        # Set after printing: the end of a command stops waiting as soon as a store is blocked.
        self.is_failing, self.is_blocked = status

    def _print_status(self, error: Exception | None) -> None:
        store = f"MLflow: {self.store}"
        if not error:
            print_line(f"{store} is available again, and has the records of {self.path}")
            return
        is_permanent = isinstance(error, PermanentFailure)
        when = "by the same command afterwards" if is_permanent else "later"
        why = str(error) if is_permanent else reason(error)
        print_line(
            f"{store} accepts no records; they are kept in {self.path} and sent {when}. {why}"
        )


def load_progress(path: Path, store: str) -> Progress:
    """Return a journal's progress in a store; 0 in another store and in a deleted database."""
    progress, name = Progress.read(path.with_suffix(".json")), without_secrets(store)
    file = stores.database(store)
    is_gone = file is not None and not file.exists()
    if not progress or progress.store != name or is_gone:
        return Progress(name)
    return progress if journal.is_line_end(path, progress.sent) else Progress(name)


def start(path: Path, store: str, deliver: Deliver) -> JournalSender:
    """Start to deliver a journal, in place of an earlier sender of this process."""
    if path in SENDERS:
        SENDERS.pop(path).stop()
    sender = SENDERS[path] = JournalSender(path, store, deliver)
    sender.thread.start()
    return sender


def wait(senders: Collection[JournalSender]) -> None:
    """Wait until all records are sent, or nothing was sent for a while. Stops finished threads.

    Does not wait for a store that is blocked.
    """
    sent, since = -1, time.monotonic()
    for sender in senders:
        sender.wake_up.set()
    while not all(sender.is_sent() or sender.is_blocked for sender in senders):
        is_failing = any(sender.is_failing for sender in senders)
        # To create a store may take long.
        if time.monotonic() - since > (PATIENCE if is_failing else 3 * PATIENCE):
            break
        time.sleep(0.05)
        if sent != (now := sum(sender.progress.sent for sender in senders)):
            sent, since = now, time.monotonic()
    for sender in senders:
        sender.stopped = True  # a thread that hangs in a request ends with the process
        if sender.is_sent():
            sender.stop()
