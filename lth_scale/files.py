"""Files that are whole or absent: write to a temporary name, fsync, rename, fsync the directory."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOMS = ("rounds/[0-9]*", "seeds/[0-9]*", "controls/*/[0-9]*")
TABLES = ("results", "controls")  # lists
KEYS = {  # objects, with these keys and others
    "metrics": {"sparsity", "pruned", "prunable", "threshold", "steps", "train_loss", "eval", "seconds"},
    "arguments": {"task"},
    "connectivity": {"seeds", "barrier"},
}

CLAIMED: dict[Path, IO[str]] = {}


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader sees the old file or the new one and nothing between."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file, following links.

    Opens nothing, so a FIFO or a device does not hang.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


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


def check_writable(directory: Path) -> None:
    """Raise OSError unless files can be made in `directory`, or while it does not exist in the one it will be made in.

    A probe, which leaves nothing behind.
    """
    nearest = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    with tempfile.TemporaryDirectory(dir=nearest) as probe:
        Path(probe, "file").touch()


def check_whole(run: Path) -> None:
    """Raise ValueError, naming the file, where one that going on with a run reads is damaged or missing.

    JSON of the wrong kind, and safetensors whose header does not fit their size; looks at no tensor.
    """
    from safetensors import SafetensorError, safe_open

    stages = [path.parent for room in ROOMS for path in run.glob(f"{room}/complete")]
    wanted = {stage / name for stage in stages for name in ("metrics.json", "ticket.safetensors")}
    wanted |= {run / "theta.safetensors"} if run / "rounds/00" in stages else set()
    wanted |= {run / "arguments.json"} if (run / "complete").is_file() else set()
    found: set[Path] = set()
    for room in (".", "rounds/[0-9]*/model", *ROOMS):
        names = ("*.safetensors", *(f"{stem}.json" for stem in (*KEYS, *TABLES)))
        found |= {path for name in names for path in run.glob(f"{room}/{name}")}
    for path in sorted(wanted | found):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="numpy"):
                    continue
            held = json.loads(path.read_bytes())
            if not isinstance(held, list if path.stem in TABLES else dict):
                raise ValueError("it holds other JSON")
            if isinstance(held, dict) and (lost := KEYS.get(path.stem, set()) - held.keys()):
                raise ValueError(f"it has no {min(lost)}")
        except (OSError, ValueError, RecursionError, SafetensorError) as problem:
            if path not in wanted and not path.exists():
                continue  # just deleted, by a process that is about to end
            raise ValueError(f"{path.relative_to(run)} is damaged or missing ({problem})") from None


def sync_directory(directory: Path) -> None:
    """Make the renames inside `directory` last."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, in which escapes stand for what could drive a terminal or is no UTF-8."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"[^ -~\n]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)
    write_bytes(path, f"{text}\n".encode())


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
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
    """A temporary directory to fill, which takes the place of `path` once it is whole."""
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    make_directory(made)
    yield made
    for file in made.rglob("*"):
        file.chmod(file.stat().st_mode & ~0o022)
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    sync_directory(made)
    shutil.rmtree(path, ignore_errors=True)
    made.rename(path)
    sync_directory(path.parent)


def claim(directory: Path) -> str:
    """Be the one process that works in `directory` until it ends, or `release`; nothing, or who that is already."""
    release(directory)
    make_directory(directory)
    lock = open(directory / ".lock", "a+")  # noqa: SIM115 (held as long as the process lives)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return lock.read().strip() or "another process"
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    CLAIMED[directory.resolve()] = lock
    return ""


def release(directory: Path) -> None:
    """Let other processes work in `directory`."""
    if directory.resolve() in CLAIMED:
        CLAIMED.pop(directory.resolve()).close()


def sweep(directory: Path) -> None:
    """Delete what processes that were killed had not finished writing. Call under a claim."""
    for path in [*directory.rglob(".*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time, of those that ask for the same path; a lock of the system, gone when its holder is."""
    make_directory(path.parent)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
