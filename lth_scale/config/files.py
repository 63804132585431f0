"""Files that are complete or absent: write a temporary file, fsync, rename, fsync the directory."""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.directories import make_directory, marks, sync, temporary, temporary_path

if TYPE_CHECKING:
    from torch import Tensor


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file, following links.

    Opens nothing, so that a FIFO or a device does not block.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def check_model(directory: Path) -> None:
    """Raise OSError if a file of a model or its tokenizer is a pipe, a device or a broken link."""
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".safetensors") and not path.is_dir():
            check_regular(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex digits. Raises OSError unless it is a readable regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, limit: int = 2**26) -> str:
    """Read a regular file as UTF-8.

    Raises OSError if it is not a regular file, ValueError if it is longer than `limit` bytes.
    """
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    return content.decode()


def read_json(path: Path) -> Any:
    """Read a regular file as JSON. Raises OSError, ValueError or RecursionError."""
    return json.loads(read_text(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` atomically: a reader sees the old content or the new one."""
    make_directory(path.parent)
    with nullcontext(temporary(path)) if marks(path) else temporary_path(path) as unfinished:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(unfinished, flags, 0o644), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """`value` as indented JSON in UTF-8; NaN and infinities become null.

    Characters that are not printable or not valid UTF-8 are escaped.
    """
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    return (re.sub(r"[^ -~\n]", _escape, text) + "\n").encode()


def _escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` as safetensors, the same bytes for the same content.

    The library writes metadata in random order; here it is sorted.
    """
    from safetensors.torch import save  # imports torch

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    assert len(text) == end - 8, "the header changed its length"
    write_bytes(path, content[:8] + text + content[end:])
