"""Locks: one process at a time in a directory or for a path."""

import fcntl
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lth_scale.config.directories import HELD, DirectoryLock, make_directory
from lth_scale.config.files import open_own

CONTENT = re.compile(r"process \d+ on .+\n(mark ([0-9a-f]{32})\n)?")


def acquire(directory: Path) -> str:
    """Lock `directory` until this process ends or calls `release`.

    Returns an empty string, or who holds the lock.
    """
    release(directory)
    make_directory(directory)
    file = os.fdopen(open_own(directory / ".lock", os.O_RDWR), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            return file.readline().strip() or "another process"
    previous = CONTENT.fullmatch(file.read())
    mark = (previous and previous[2]) or uuid.uuid4().hex
    file.seek(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\nmark {mark}\n")
    file.truncate()
    file.flush()
    HELD[directory.resolve()] = DirectoryLock(file, mark)
    return ""


def release(directory: Path) -> None:
    """Unlock `directory` if this process holds its lock."""
    if directory.resolve() in HELD:
        HELD.pop(directory.resolve()).file.close()


def is_lock(path: Path) -> bool:
    """True if `path` is a `.lock` that `acquire` wrote."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        return bool(CONTENT.fullmatch(path.read_bytes()[:1000].decode()))
    except (OSError, ValueError):
        return False


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process is inside `exclusive(path)`; a process that dies unlocks it."""
    make_directory(path.parent)
    descriptor = open_own(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_APPEND)
    with os.fdopen(descriptor, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
