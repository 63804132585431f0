"""Directories that are complete or absent, and the temporary names under which they are written.

Only what this package has written is ever deleted or replaced. A temporary name ends in the mark of
the run that made it.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class DirectoryLock:
    """A lock that this process holds. mark: part of the names of the run's unfinished files."""

    file: IO[str]
    mark: str


HELD: dict[Path, DirectoryLock] = {}  # by resolved directory


def temporary(path: Path) -> Path:
    """The temporary name beside `path`, with the mark of the run it belongs to or a new one."""
    mark = next(iter(marks(path)), uuid.uuid4().hex)
    stem = path.name.encode(errors="surrogateescape")[:180].decode(errors="ignore")
    return path.with_name(f".{stem}.{mark}.tmp")


def marks(path: Path) -> list[str]:
    """The marks of the locked directories that contain `path`, the innermost first."""
    locks = (HELD.get(parent) for parent in path.absolute().resolve().parents)
    return [lock.mark for lock in locks if lock]


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, writable by the user only, whatever the umask."""
    for missing in reversed([parent for parent in (path, *path.parents) if not parent.exists()]):
        missing.mkdir(0o755, exist_ok=True)


def check_writable(directory: Path) -> None:
    """Raise OSError unless files can be created in `directory`, or in its nearest existing parent.

    Probes with a temporary file that is deleted again. A broken link is an error too.
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


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make all files of a directory durable, and writable by the user only."""
    for path in directory.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill; renamed to `path` on success, deleted on failure.

    Deletes first what killed processes left of the same directory. Raises OSError if anything but
    an empty directory exists at `path`: nothing is replaced.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        sync_tree(unfinished)
        os.rename(unfinished, path)
    sync_directory(path.parent)


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


def _abandoned(path: Path) -> Iterator[Path]:
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
                yield Path(entry.path)
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
            sync_directory(target.parent)
        shutil.rmtree(unfinished)
    sync_directory(path.parent)
