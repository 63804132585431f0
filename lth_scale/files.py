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
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOMS = ("rounds/[0-9]*", "seeds/[0-9]*", "controls/*/[0-9]*")
TENSORS = (
    *("ticket.safetensors", "theta.safetensors", "theta-[0-9]*.safetensors", "weights.safetensors"),
    *("model.safetensors", "model-*-of-*.safetensors"),
)
TABLES = ("results", "controls")  # lists
KEYS = {  # objects, with these keys and others
    "metrics": {"sparsity", "pruned", "prunable", "threshold", "steps", "train_loss", "eval", "seconds"},
    "arguments": {"task"},
    "connectivity": {"seeds", "barrier"},
}

LISTING, LISTED = ".files", "lth_scale.files/1"  # in a directory: which names there are ours; and its format
# What a tokenizer is made of, of all classes of transformers that this package takes.
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "entity_vocab.json", "merges.txt", "bpe.codes", "dict.txt"),
    *("tokenizer.model", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model"),
    *("sentencepiece.bpe.model", "word_shape.json", "word_pronunciation.json"),
)
# What `save_pretrained` writes, for networks that were saved without a listing.
NETWORK = re.compile(
    r"((generation_)?config|model\.safetensors\.index)\.json|model(-\d+-of-\d+)?\.safetensors|chat_template\.jinja|"
    + "|".join(map(re.escape, TOKENIZER))
)
LOCK = re.compile(r"process \d+ on .+\n(mark ([0-9a-f]{32})\n)?")


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


def temporary(path: Path) -> Path:
    """The name beside `path` under which it is written: that of the run below whose directory it lies, or a new one."""
    mark = next(iter(_marks(path)), uuid.uuid4().hex)
    stem = path.name.encode(errors="surrogateescape")[:180].decode(errors="ignore")
    return path.with_name(f".{stem}.{mark}.tmp")


def _marks(path: Path) -> list[str]:
    """The marks of the runs that this process works on and below whose directories `path` lies, the nearest first."""
    claims = (CLAIMED.get(parent) for parent in path.absolute().resolve().parents)
    return [claim.mark for claim in claims if claim]


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
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    with tempfile.TemporaryDirectory(dir=nearest) as probe:
        Path(probe, "file").touch()


def check_whole(run: Path) -> None:
    """Raise ValueError, naming the file, where one that going on with a run reads is damaged or missing.

    JSON of the wrong kind, and safetensors whose header does not fit their size; looks at no tensor.
    """
    from safetensors import SafetensorError, safe_open

    homes = stages(run)
    done = [home for home in homes if (home / "complete").exists()]
    wanted = {home / name for home in done for name in ("metrics.json", "ticket.safetensors")}
    wanted |= {run / "theta.safetensors"} if run / "rounds/00" in done else set()
    wanted |= {run / "arguments.json"} if (run / "complete").is_file() else set()
    names = (*TENSORS, *(f"{stem}.json" for stem in (*KEYS, *TABLES)))
    places = (run, *homes, *(home / "model" for home in homes))
    found = {path for place in places for name in names for path in place.glob(name)}
    for path in sorted(wanted | found):
        try:
            if path.suffix == ".safetensors":
                check_regular(path)
                with safe_open(path, framework="numpy"):
                    continue
            held = read_json(path)
            if not isinstance(held, list if path.stem in TABLES else dict):
                raise ValueError("it holds other JSON")
            if isinstance(held, dict) and (lost := KEYS.get(path.stem, set()) - held.keys()):
                raise ValueError(f"it has no {min(lost)}")
        except (OSError, ValueError, RecursionError, SafetensorError) as problem:
            if path not in wanted and not path.exists():
                continue  # just deleted, by a process that is about to end
            raise ValueError(f"{path.relative_to(run)} is damaged or missing ({problem})") from None


def stages(run: Path) -> list[Path]:
    """The directories of a run's rounds, controls and seeds; a copy of one, such as `01-old`, is none."""
    paths = [path for room in ROOMS for path in run.glob(room)]
    return [path for path in paths if path.name.isascii() and path.name.isdecimal()]


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
    text = re.sub(r"[^ -~\n]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)
    return f"{text}\n".encode()


def finite(value: Any) -> Any:
    """`value`, of which JSON is to be made, with None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
def listed_directory(path: Path) -> Iterator[Path]:
    """Like `new_directory`, but it takes the place of what was written there in the same way before.

    Files of others in `path` stay.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        names = sorted(file.relative_to(unfinished).as_posix() for file in unfinished.rglob("*") if file.is_file())
        if not is_foreign(path / LISTING):
            write_listing(unfinished, names)
        sync_tree(unfinished)
        remove_listed(path)
        move_into(unfinished, path)


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
            if os.listdir(entry.path) == [path.name]:  # else another program made it, or it is not locked yet
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


def remove_listed(directory: Path) -> None:
    """Delete what `listed_directory` wrote, and the directory unless something else lies in it."""
    if directory.is_symlink() or not directory.is_dir():
        return
    names = listed(directory) or [entry.name for entry in os.scandir(directory) if NETWORK.fullmatch(entry.name)]
    remove_files(directory, [*names, LISTING])


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Delete the files of these names in a directory, and then each directory in which nothing else lies."""
    paths = [directory / name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
    for path in paths:
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
    for parent in sorted({path.parent for path in paths} | {directory}, reverse=True):
        with suppress(OSError):  # others have files there
            parent.rmdir()


def listed(directory: Path) -> list[str]:
    """The names in a directory that its list says are ours; none where there is no list, or none of ours."""
    try:
        listing = read_json(directory / LISTING)
        return [str(name) for name in listing["files"]] if listing["format"] == LISTED else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def is_foreign(listing: Path) -> bool:
    """True where a file of the name of our lists is somebody else's."""
    return os.path.lexists(listing) and not listed(listing.parent)


def write_listing(directory: Path, names: Iterable[str]) -> None:
    """Say in a directory which names there are ours."""
    write_json(directory / LISTING, {"format": LISTED, "files": sorted(names)})


def check_listed(directory: Path, names: Iterable[str], sign: tuple[str, bytes]) -> None:
    """Raise FileExistsError where one of `names` is in a directory and its list does not have it as ours.

    sign: a name, and how its content begins where it is ours: the directory was then written before there were lists.
    """
    if not os.path.lexists(directory / LISTING) and _begins_with(directory / sign[0], sign[1]):
        return
    for other in sorted({*names, LISTING} - {*listed(directory)}):
        if os.path.lexists(directory / other) if other != LISTING else is_foreign(directory / LISTING):
            why = f"{other} is there already, and was not written by this command"
            raise FileExistsError(errno.EEXIST, why, str(directory / other))


def _begins_with(path: Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def write_listed(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a directory that may hold others, with a list of them. Call `check_listed` before."""
    write_listing(directory, {*listed(directory), *contents})
    for name, content in contents.items():
        write_bytes(directory / name, content)


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
        return not path.is_symlink() and path.is_file() and bool(LOCK.fullmatch(path.read_bytes()[:1000].decode()))
    except (OSError, ValueError):
        return False


def link_in(run: Path) -> Path | None:
    """The first directory below a run's that is a link, of those that it writes to; None where there is none."""
    rooms = [run / name for name in ("rounds", "seeds", "controls", "figures", "connectivity")]
    homes = stages(run)
    places = (*rooms, *run.glob("controls/*"), *homes, *(home / "model" for home in homes))
    return next(filter(Path.is_symlink, places), None)


def release(directory: Path) -> None:
    """Let other processes work in `directory`."""
    if directory.resolve() in CLAIMED:
        CLAIMED.pop(directory.resolve()).lock.close()


def sweep(directory: Path) -> None:
    """Delete what processes of this run that were killed had not finished writing. Call under a claim.

    That is what carries the run's mark, in the places where the run writes, and not behind a link.
    """
    mark = CLAIMED[directory.resolve()].mark
    homes = stages(directory)
    checkpoints = [path for home in homes for path in home.glob("checkpoint-[0-9]*")]
    for place in (directory, directory / "figures", directory / "connectivity", *homes, *checkpoints):
        below = [path for path in (place, *place.parents) if directory in path.parents]
        if not place.is_dir() or any(path.is_symlink() for path in below):
            continue
        for entry in [*os.scandir(place)]:
            if not (entry.name.startswith(".") and entry.name.endswith(f".{mark}.tmp")) or entry.is_symlink():
                continue
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time, of those that ask for the same path; a lock of the system, gone when its holder is."""
    make_directory(path.parent)
    with os.fdopen(open_own(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_APPEND), "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
