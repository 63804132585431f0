"""Delivery of journals to a store in a background thread, so that training never waits for it.

Progress is saved after each delivery: a process that was killed or got no reply may deliver some
records again. `JournalSender.replay_end` bounds these records; deduplicating them there makes
delivery exactly once. A store that is down is retried with exponential backoff; after a
`PermanentFailure` the end of a command does not wait for the store.
"""

import fcntl
import json
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import reason
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, settings
from lth_scale.tracking.mlflow.journal import JournalLine, Progress, Record

PAUSE = 1.0  # seconds in which records accumulate before they are sent together
CHUNK = 1000  # records that are read at once, and the most points of one request
DELAYS = (0.5, 30.0)  # seconds between attempts: the first, doubled up to the last
PATIENCE = 20.0  # seconds without progress after which the end of a command stops waiting
SENDERS: dict[Path, "JournalSender"] = {}  # of this process, by journal
RETRIED = {408, 409, 429}  # HTTP statuses below 500 after which a request is repeated
# Errors of a store that accepts no records until the user acts, and what to do.
REMEDIES = {
    "out-of-date database schema|Can't locate revision": "another version of MLflow created it: "
    "back it up and run `mlflow db upgrade {store}`, or install that version",
    "UNAUTHENTICATED|UNAUTHORIZED|PERMISSION_DENIED|error code 40[13]": "set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user "
    "with write access",
    "authentication failed|[Aa]ccess denied|Login failed|no password supplied|"
    "(role|database) .* does not exist|Unknown database": "correct the user, password and "
    "database in MLFLOW_TRACKING_URI",
    "readonly database|unable to open database|[Pp]ermission denied|Read-only file": "make the "
    "database and its directory writable for this user",
    "No module named": "install that package",
    "MLFLOW_EXPERIMENT_ID|No Experiment with id|Invalid experiment ID": "correct or unset "
    "MLFLOW_EXPERIMENT_ID",
    "file is not a database|is malformed": "move the file away to send all records to a new one",
    "(?i)certificate verify failed": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the server's "
    "certificate",
    r"(?i)wrong_version_number|wrong version number|ENDPOINT_NOT_FOUND|"
    r"error code (3\d\d|40[45]) |not in a valid JSON|invalid url|no host supplied|"
    "(could not|failed to) parse": "no MLflow server answers there: correct MLFLOW_TRACKING_URI",
}

Deliver = Callable[["JournalSender", list[JournalLine]], Iterator[int]]


class PermanentFailure(Exception):
    """A store accepts no records until the user acts; the message says why and what to do."""


def is_transient(error: Exception) -> bool:
    """True if a later attempt may succeed by itself: the store is down or busy."""
    if remedy(error, ""):
        return False
    status = getattr(error, "get_http_status_code", lambda: None)()
    if status is None:
        permanent = LookupError | TypeError | ValueError | AttributeError | ImportError
        return not isinstance(error, permanent)
    is_taken = getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS"
    return status >= 500 or status in RETRIED or is_taken


def remedy(error: Exception, store: str) -> str:
    """Return why a store accepts no records and the remedy; empty if it may accept others."""
    text = f"{getattr(error, 'error_code', '')} {error}"
    steps = next((steps for pattern, steps in REMEDIES.items() if re.search(pattern, text)), "")
    if not steps:
        return ""
    steps = steps.format(store=shlex.quote(without_secrets(store)))
    return f"{reason(error).rstrip('.')}; {steps}, or use --report_to none"


class JournalSender:
    """Appends records to one journal and delivers them to a store.

    deliver: sends lines in order and yields the end of each one that was delivered. It alone
    changes `progress`; to rewind it sets `progress.sent` back and yields nothing.
    """

    def __init__(self, path: Path, store: str, deliver: Deliver):
        self.path, self.store, self.deliver = path, without_secrets(store), deliver
        self.descriptor = directories.open_own(path, os.O_RDWR | os.O_APPEND)
        self.replay_end = journal.valid_length(path)
        os.ftruncate(self.descriptor, self.replay_end)
        if renamed := journal.quarantine(path.with_suffix(".json")):
            print_line(
                "MLflow: mlflow.json was damaged or not written by lth_scale, and is now "
                f"{renamed}; the store is asked which records it has"
            )
        self.progress = load_progress(path, store)
        self.buffer, self.stopped, self.wake_up = b"", False, threading.Event()
        self.is_failing = self.is_blocked = False
        self.thread = threading.Thread(target=self._run, name=f"send {path}", daemon=True)

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
                lines = list(islice(journal.read(self.path, self.progress.sent), CHUNK))
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
        status = (error is not None, isinstance(error, PermanentFailure))
        others_fail = any(other.is_failing for other in [*SENDERS.values()] if other is not self)
        if status != (self.is_failing, self.is_blocked) and not (self.stopped or others_fail):
            text = f"is available again, and has the records of {self.path}"
            if error:
                when, why = "later", reason(error)
                if isinstance(error, PermanentFailure):
                    when, why = "when the same command runs again", str(error)
                text = f"accepts no records; they are kept in {self.path} and sent {when}. {why}"
            print_line(f"MLflow: {self.store} {text}")
        # Set after printing: the end of a command stops waiting as soon as a store is blocked.
        self.is_failing, self.is_blocked = status


def load_progress(path: Path, store: str) -> Progress:
    """Return a journal's progress in a store; 0 in another store and in a deleted database."""
    progress, name = Progress.read(path.with_suffix(".json")), without_secrets(store)
    file = settings.database(store)
    if not progress or progress.store != name or (file and not file.exists()):
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
        # Creating a store may take long.
        if time.monotonic() - since > (PATIENCE if is_failing else 3 * PATIENCE):
            break
        time.sleep(0.05)
        if sent != (now := sum(sender.progress.sent for sender in senders)):
            sent, since = now, time.monotonic()
    for sender in senders:
        sender.stopped = True  # a thread that hangs in a request ends with the process
        if sender.is_sent():
            sender.stop()
