"""Manifests: which files in a directory this package wrote, and whether they are intact.

A manifest is a JSON object with the keys `format`, `files` and any other facts:

- `.files` lists without digests what this package wrote beside other files;
- `export.json` has the SHA-256 of every file and a seal, the SHA-256 of its own content;
- `checkpoint.json`, whose digest the file `complete` holds (`training.checkpoints`).
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.directories import (
    locked,
    make_directory,
    move_into,
    sync_tree,
    temporary_directory,
)

# The file that names our own in a directory, and its format
LISTING, _LISTED = ".files", "lth_scale.files/1"
# The files of all tokenizer classes of transformers
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "entity_vocab.json", "merges.txt", "bpe.codes", "dict.txt"),
    *("tokenizer.model", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model"),
    *("sentencepiece.bpe.model", "word_shape.json", "word_pronunciation.json"),
)
# What `save_pretrained` writes, for networks saved without a listing
_NETWORK = re.compile(
    r"((generation_)?config|model\.safetensors\.index)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|chat_template\.jinja|" + "|".join(map(re.escape, TOKENIZER))
)


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
    def read(cls, path: Path, format: str, sealed: bool = False, limit: int = 2**26) -> "Manifest":
        """Read a manifest of at most `limit` bytes. Raises OSError or ValueError."""
        content = files.read_text(path, limit).encode()
        bare = content[: len(content) - len(seal(b""))] + b"\n}\n"
        if sealed and seal(bare) != content:
            raise ValueError("changed since it was written: its sha256 differs")
        try:
            facts = dict(json.loads(bare if sealed else content))
            found, names = facts.pop("format"), facts.pop("files")
            digests = names if isinstance(names, dict) else dict.fromkeys(map(str, names), "")
        except (KeyError, TypeError, RecursionError) as problem:
            raise ValueError(f"invalid manifest ({type(problem).__name__}: {problem})") from None
        if found != format:
            raise ValueError(f"its format was {found}, is {format}")
        return cls(format, digests, facts)

    @property
    def content(self) -> dict[str, Any]:
        """The JSON object; `files` is a list of names if no digest is known."""
        names = dict(self.files) if any(self.files.values()) else [*self.files]
        return {"format": self.format, **self.facts, "files": names}

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded manifest, in hex digits."""
        return hashlib.sha256(files.as_json(self.content)).hexdigest()

    def write(self, path: Path, sealed: bool = False) -> None:
        """Write the manifest atomically."""
        content = files.as_json(self.content)
        files.write_bytes(path, seal(content) if sealed else content)

    def is_intact(self, directory: Path, name: str) -> bool:
        """True if the file is listed, exists and has its SHA-256."""
        path, digest = directory / name, self.files.get(name)
        return digest is not None and path.is_file() and digest in ("", files.sha256(path))

    def first_damaged(self, directory: Path, names: Iterable[str]) -> str | None:
        """The first of `names` that is not intact, or None."""
        return next((name for name in names if not self.is_intact(directory, name)), None)


def seal(content: bytes) -> bytes:
    """Append the SHA-256 of an encoded JSON object to it, as its last key `sha256`."""
    digest = hashlib.sha256(content).hexdigest()
    return content.removesuffix(b"\n}\n") + f',\n "sha256": "{digest}"\n}}\n'.encode()


@contextmanager
def listed_directory(path: Path) -> Iterator[Path]:
    """Like `new_directory`, but replaces what was written to `path` in this way before.

    Other files in `path` stay.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        written = [file for file in unfinished.rglob("*") if file.is_file()]
        if not is_foreign(path / LISTING):
            write_listing(unfinished, [each.relative_to(unfinished).as_posix() for each in written])
        sync_tree(unfinished)
        remove_listed(path)
        move_into(unfinished, path)


def remove_listed(directory: Path) -> None:
    """Delete what `listed_directory` wrote, and the directory if it is empty then."""
    if directory.is_symlink() or not directory.is_dir():
        return
    names = listed(directory) or filter(_NETWORK.fullmatch, os.listdir(directory))
    remove_files(directory, [*names, LISTING])


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Delete these files of a directory, and then each directory that is empty."""
    paths = [
        directory / name
        for name in names
        if ".." not in Path(name).parts and not Path(name).is_absolute()
    ]
    for path in paths:
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
    for parent in sorted({path.parent for path in paths} | {directory}, reverse=True):
        with suppress(OSError):  # not empty
            parent.rmdir()


def listed(directory: Path) -> list[str]:
    """The names in a directory's listing; empty if it has none that this package wrote."""
    try:
        return [*Manifest.read(directory / LISTING, _LISTED).files]
    except (OSError, ValueError):
        return []


def is_foreign(listing: Path) -> bool:
    """True if a file has the name of a listing but was not written by this package."""
    return os.path.lexists(listing) and not listed(listing.parent)


def write_listing(directory: Path, names: Iterable[str]) -> None:
    """Write the listing of a directory."""
    Manifest(_LISTED, dict.fromkeys(sorted(names), "")).write(directory / LISTING)


def check_listed(directory: Path, names: Iterable[str], sign: tuple[str, bytes]) -> None:
    """Raise FileExistsError if a directory has one of `names` and its listing does not.

    sign: a name, and how its content begins if it is ours; then the directory may lack a listing.
    """
    first, beginning = directory / sign[0], sign[1]
    if not os.path.lexists(directory / LISTING) and first.is_file():
        with first.open("rb") as file:
            if file.read(len(beginning)) == beginning:
                return
    for other in sorted({*names, LISTING} - {*listed(directory)}):
        path = directory / other
        if is_foreign(path) if other == LISTING else os.path.lexists(path):
            why = f"{other} already exists, and was not written by this command"
            raise FileExistsError(errno.EEXIST, why, str(path))


def write_listed(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a directory that may hold others, and list them; `check_listed` first.

    Processes that write into the same directory take turns: the files are those of one of them.
    """
    make_directory(directory)
    with locked(directory):
        write_listing(directory, {*listed(directory), *contents})
        for name, content in contents.items():
            files.write_bytes(directory / name, content)
