"""Files that are whole or absent: write to a temporary name, fsync, rename, fsync the directory.

Only what this package has written is ever deleted or replaced. A temporary name ends in the mark of the run that made
it; a directory in which others may have files too lists our own in `.files`.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Claim:
    """A directory that this process works in. mark: in the names of what the run has not finished writing."""

    lock: IO[str]
    mark: str


CLAIMED: dict[Path, Claim] = {}


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file, made where there is none; no link is followed and no pipe waited for.

    Raises OSError where something else lies there.
    """
    handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return handle


def temporary(path: Path) -> Path:
    """The name beside `path` under which it is written: that of the run below whose directory it lies, or a new one."""
    mark = next(iter(_marks(path)), uuid.uuid4().hex)
    stem = path.name.encode(errors="surrogateescape")[:180].decode(errors="ignore")
    return path.with_name(f".{stem}.{mark}.tmp")


def _marks(path: Path) -> list[str]:
    """The marks of the runs that this process works on and below whose directories `path` lies, the nearest first."""
    claims = (CLAIMED.get(parent) for parent in path.absolute().resolve().parents)
    return [claim.mark for claim in claims if claim]


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader sees the old file or the new one and nothing between."""
    make_directory(path.parent)
    with nullcontext(temporary(path)) if _marks(path) else _around(path) as unfinished:
        with open(unfinished, "wb", opener=_without_links) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    sync_directory(path.parent)


def _without_links(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o644)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits. Raises OSError unless it is a regular file that can be read."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, limit: int = 2**26) -> str:
    """A regular file of UTF-8. Raises OSError where it is none, ValueError where it is longer than `limit` bytes."""
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    return content.decode()


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing; others may never write there, whatever the umask."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(0o755, exist_ok=True)


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file, following links.

    Opens nothing, so a FIFO or a device does not hang.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def check_model(directory: Path) -> None:
    """Raise OSError where a file of a model or its tokenizer is a pipe, a device or a broken link."""
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".safetensors") and not path.is_dir():
            check_regular(path)


def read_json(path: Path) -> Any:
    """What a regular file of JSON holds. Raises OSError, ValueError or RecursionError."""
    return json.loads(read_text(path))


def check_writable(directory: Path) -> None:
    """Raise OSError unless files can be made in `directory`, or while it does not exist in the one it will be made in.

    A probe, which leaves nothing behind. A link that leads nowhere is an error too.
    """
    for path in (directory, *directory.parents):
        if path.is_symlink():
            path.stat()  # raises for a link that leads nowhere
    nearest = next(
        path for path in (directory, *directory.absolute().parents) if os.path.lexists(path)
    )
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    with tempfile.TemporaryDirectory(dir=nearest) as probe:
        Path(probe, "file").touch()


def sync_directory(directory: Path) -> None:
    """Make the renames inside `directory` last."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """`value` as indented JSON in UTF-8, in which escapes stand for what could drive a terminal or is no UTF-8.

    JSON has no NaN and no infinity: they are null.
    """
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(
        r"[^ -~\n]",
        lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1],
        text,
    )
    return f"{text}\n".encode()


def finite(value: Any) -> Any:
    """`value`, of which JSON is to be made, with None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` as safetensors, the same bytes for the same content (the library shuffles its metadata)."""
    from safetensors.torch import save  # imports torch

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    assert len(text) == end - 8, "the header changed its length"
    write_bytes(path, content[:8] + text + content[end:])


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `path` once it is whole, and is deleted where filling it fails.

    What a process that was killed left of the same directory is deleted first. Raises OSError where something
    other than an empty directory lies at `path`: nothing is replaced.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        sync_tree(unfinished)
        os.rename(unfinished, path)
    sync_directory(path.parent)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A directory called as `path`, in a temporary one beside that, gone afterwards unless it was renamed."""
    with _around(path) as inside:
        make_directory(inside)
        yield inside


@contextmanager
def _around(path: Path) -> Iterator[Path]:
    """The name of `path` in a temporary directory beside it, which is locked while it is used and deleted afterwards.

    Those for the same path that no process holds any more are deleted first.
    """
    for left in _abandoned(path):
        shutil.rmtree(left)
    around = temporary(path)
    make_directory(around)
    lock = os.open(around, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield around / path.name
    finally:
        shutil.rmtree(around, ignore_errors=True)
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
            if os.listdir(entry.path) == [
                path.name
            ]:  # else another program made it, or it is not locked yet
                yield Path(entry.path)
        except OSError:
            continue  # it is being filled, or cannot be known
        finally:
            os.close(lock)


def sync_tree(directory: Path) -> None:
    """Make the files of a directory last, and let nobody else write them."""
    for file in directory.rglob("*"):
        file.chmod(file.stat().st_mode & ~0o022)
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    sync_directory(directory)


def move_into(unfinished: Path, path: Path) -> None:
    """Rename a directory to `path`; where files of others lie there, its files one by one into that."""
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
