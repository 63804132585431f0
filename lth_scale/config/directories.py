"""Directories that are complete or absent, their temporary names, and their locks.

Only what this package has written is ever deleted or replaced. A temporary name ends in the mark of
the run that made it.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lth_scale.config.errors import BadInput

CONTENT = re.compile(r"process \d+ on .+\n(mark ([0-9a-f]{32})\n)?")  # of a `.lock`


@dataclass(frozen=True)
class DirectoryLock:
    """A lock that this process holds. mark: part of the names of the run's unfinished files."""

    file: IO[str]
    mark: str


HELD: dict[Path, DirectoryLock] = {}  # by resolved directory


def acquire(directory: Path) -> str:
    """Lock `directory` until this process ends or calls `release`; return who holds it, or ""."""
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
    if lock := HELD.pop(directory.resolve(), None):
        lock.file.close()


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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process is inside `locked(directory)`, which must exist; leaves no file.

    On a file system without locks it does not wait.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """True if a process holds the lock of a file; False if there is no file. Writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file, created if missing; follows no link and waits for no pipe.

    Raises OSError if anything else exists there.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def temporary(path: Path) -> Path:
    """The temporary name beside `path`, with the mark of the run it belongs to or a new one."""
    mark = next(iter(marks(path)), uuid.uuid4().hex)
    stem = path.name.encode(errors="surrogateescape")[:180].decode(errors="ignore")
    return path.with_name(f".{stem}.{mark}.tmp")


def marks(path: Path) -> list[str]:
    """The marks of the locked directories that contain `path`, the innermost first."""
    return [HELD[parent].mark for parent in path.absolute().resolve().parents if parent in HELD]


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, writable by the user only, whatever the umask."""
    for missing in reversed([parent for parent in (path, *path.parents) if not parent.exists()]):
        missing.mkdir(0o755, exist_ok=True)


@contextmanager
def must_be_writable(name: str, remedy: str = "use another directory") -> Iterator[None]:
    """Raise BadInput instead of OSError inside. name: the flag and its value, or the path."""
    try:
        yield
    except OSError as problem:
        raise BadInput(f"{name}: cannot be written ({problem.strerror}); {remedy}") from None


def check_writable(directory: Path) -> None:
    """Raise OSError unless files can be created in `directory`, or in its nearest existing parent.

    Creates and deletes a temporary file. A broken link is an error too.
    """
    for path in (directory, *directory.parents):
        if path.is_symlink():
            path.stat()  # raises for a broken link
    nearest = next(
        path for path in (directory, *directory.absolute().parents) if os.path.lexists(path)
    )
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    with tempfile.TemporaryDirectory(dir=nearest) as probe:
        Path(probe, "file").touch()


def sync(path: Path) -> None:
    """Make a file, or the renames inside a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make all files of a directory durable, and writable by the user only."""
    for path in directory.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)
        if path.is_file():
            sync(path)
    sync(directory)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill; renamed to `path` on success, deleted on failure.

    Raises OSError if anything but an empty directory exists at `path`: nothing is replaced.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        sync_tree(unfinished)
        os.rename(unfinished, path)
    sync(path.parent)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A directory named as `path` inside a temporary one beside it, deleted unless renamed."""
    with temporary_path(path) as inside:
        make_directory(inside)
        yield inside


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """`path.name` inside a temporary directory beside it, locked while in use, deleted afterwards.

    Deletes first those for the same path that no process holds any more.
    """
    for abandoned in _abandoned(path):
        shutil.rmtree(abandoned)
    parent = temporary(path)
    make_directory(parent)
    lock = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield parent / path.name
    finally:
        shutil.rmtree(parent, ignore_errors=True)
        os.close(lock)


def _abandoned(path: Path) -> Iterator[str]:
    """Temporary directories for `path` that no living process fills."""
    form = re.compile(re.escape(temporary(path).name[:-36]) + r"[0-9a-f]{32}\.tmp")
    for entry in os.scandir(path.parent) if path.parent.is_dir() else ():
        if not (form.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)):
            continue
        try:
            lock = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Otherwise another program made it, or it is not locked yet.
            if os.listdir(entry.path) == [path.name]:
                yield entry.path
        except OSError:
            continue  # in use, or unreadable
        finally:
            os.close(lock)


def move_into(unfinished: Path, path: Path) -> None:
    """Rename a directory to `path`; if that holds other files, move the new ones in one by one."""
    try:
        os.rename(unfinished, path)
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        for file in sorted(file for file in unfinished.rglob("*") if file.is_file()):
            target = path / file.relative_to(unfinished)
            make_directory(target.parent)
            os.replace(file, target)
            sync(target.parent)
        shutil.rmtree(unfinished)
    sync(path.parent)
