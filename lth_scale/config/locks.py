"""Locks: one process at a time in a directory."""

import fcntl
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lth_scale.config.files import CLAIMED, Claim, make_directory, open_own

LOCK = re.compile(r"process \d+ on .+\n(mark ([0-9a-f]{32})\n)?")


def claim(directory: Path) -> str:
    """Be the one process that works in `directory` until it ends, or `release`; nothing, or who that is already."""
    release(directory)
    make_directory(directory)
    lock = os.fdopen(open_own(directory / ".lock", os.O_RDWR), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            return lock.readline().strip() or "another process"
    before = LOCK.fullmatch(lock.read())
    mark = (before and before[2]) or uuid.uuid4().hex
    lock.seek(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\nmark {mark}\n")
    lock.truncate()
    lock.flush()
    CLAIMED[directory.resolve()] = Claim(lock, mark)
    return ""


def is_lock(path: Path) -> bool:
    """True for a `.lock` that `claim` wrote."""
    try:
        return (
            not path.is_symlink()
            and path.is_file()
            and bool(LOCK.fullmatch(path.read_bytes()[:1000].decode()))
        )
    except (OSError, ValueError):
        return False


def release(directory: Path) -> None:
    """Let other processes work in `directory`."""
    if directory.resolve() in CLAIMED:
        CLAIMED.pop(directory.resolve()).lock.close()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time, of those that ask for the same path; a lock of the system, gone when its holder is."""
    make_directory(path.parent)
    with os.fdopen(
        open_own(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_APPEND), "a+"
    ) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
