"""Manifests: which files in a directory this package wrote, and whether they are intact.

A manifest is a JSON object with the keys `format` and `files` and any other facts. It serves

- `.files`, which lists names without digests (`config.listing`);
- `export.json`, with the SHA-256 of every file and a seal, the SHA-256 of its own content; a pull
  from the Hub checks it too (`shipping`);
- `checkpoint.json`, whose digest the file `complete` holds (`training.checkpoints`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import files


@dataclass(frozen=True)
class Manifest:
    """The files of a directory and facts about them.

    format: name and version of the kind of manifest. files: SHA-256 in hex digits by name relative
    to the directory; "" if it is not known.
    """

    format: str
    files: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, content: bytes, format: str) -> "Manifest":
        """Parse what `encode` returned. Raises ValueError if it is invalid or of another format."""
        try:
            facts = dict(json.loads(content))
            found, listed = facts.pop("format"), facts.pop("files")
            digests = listed if isinstance(listed, dict) else dict.fromkeys(map(str, listed), "")
        except (KeyError, TypeError, RecursionError) as problem:
            raise ValueError(f"invalid manifest ({type(problem).__name__}: {problem})") from None
        if found != format:
            raise ValueError(f"its format was {found}, is {format}")
        return cls(format, digests, facts)

    @classmethod
    def read(cls, path: Path, format: str, sealed: bool = False, limit: int = 2**26) -> "Manifest":
        """Read a manifest of at most `limit` bytes. Raises OSError or ValueError."""
        content = files.read_text(path, limit).encode()
        return cls.decode(unseal(content) if sealed else content, format)

    @property
    def content(self) -> dict[str, Any]:
        """The JSON object; `files` is a list of names if no digest is known."""
        listed = dict(self.files) if any(self.files.values()) else [*self.files]
        return {"format": self.format, **self.facts, "files": listed}

    def encode(self) -> bytes:
        """Encode as JSON."""
        return files.as_json(self.content)

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded manifest, in hex digits."""
        return hashlib.sha256(self.encode()).hexdigest()

    def write(self, path: Path, sealed: bool = False) -> None:
        """Write the manifest atomically."""
        files.write_bytes(path, seal(self.encode()) if sealed else self.encode())

    def is_intact(self, directory: Path, name: str) -> bool:
        """Return True if the file is listed, exists and has its SHA-256."""
        path, digest = directory / name, self.files.get(name)
        return digest is not None and path.is_file() and digest in ("", files.sha256(path))

    def first_damaged(self, directory: Path, names: Iterable[str]) -> str | None:
        """Return the first of `names` that is not intact, or None."""
        return next((name for name in names if not self.is_intact(directory, name)), None)


def seal(content: bytes) -> bytes:
    """Append the SHA-256 of an encoded JSON object to it, as its last key `sha256`."""
    digest = hashlib.sha256(content).hexdigest()
    return content.removesuffix(b"\n}\n") + f',\n "sha256": "{digest}"\n}}\n'.encode()


def unseal(content: bytes) -> bytes:
    """Return what `seal` was given. Raises ValueError if any byte has changed since."""
    bare = content[: len(content) - len(seal(b""))] + b"\n}\n"
    if seal(bare) != content:
        raise ValueError("changed since it was written: its sha256 differs")
    return bare
