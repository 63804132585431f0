"""Directories that may hold other files: `.files` lists those that this package wrote."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lth_scale.config.directories import move_into, sync_tree, temporary_directory
from lth_scale.config.files import write_bytes
from lth_scale.config.manifest import Manifest

# The file that names our own in a directory, and its format
LISTING, LISTED = ".files", "lth_scale.files/1"
# The files of all tokenizer classes of transformers
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "entity_vocab.json", "merges.txt", "bpe.codes", "dict.txt"),
    *("tokenizer.model", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model"),
    *("sentencepiece.bpe.model", "word_shape.json", "word_pronunciation.json"),
)
# What `save_pretrained` writes, for networks saved without a listing
NETWORK = re.compile(
    r"((generation_)?config|model\.safetensors\.index)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|chat_template\.jinja|" + "|".join(map(re.escape, TOKENIZER))
)


@contextmanager
def listed_directory(path: Path) -> Iterator[Path]:
    """Like `new_directory`, but replaces what was written to `path` in this way before.

    Other files in `path` stay.
    """
    with temporary_directory(path) as unfinished:
        yield unfinished
        names = sorted(
            file.relative_to(unfinished).as_posix()
            for file in unfinished.rglob("*")
            if file.is_file()
        )
        if not is_foreign(path / LISTING):
            write_listing(unfinished, names)
        sync_tree(unfinished)
        remove_listed(path)
        move_into(unfinished, path)


def remove_listed(directory: Path) -> None:
    """Delete what `listed_directory` wrote, and the directory if it is empty then."""
    if directory.is_symlink() or not directory.is_dir():
        return
    names = listed(directory) or [
        entry.name for entry in os.scandir(directory) if NETWORK.fullmatch(entry.name)
    ]
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
        return [*Manifest.read(directory / LISTING, LISTED).files]
    except (OSError, ValueError):
        return []


def is_foreign(listing: Path) -> bool:
    """True if a file has the name of a listing but was not written by this package."""
    return os.path.lexists(listing) and not listed(listing.parent)


def write_listing(directory: Path, names: Iterable[str]) -> None:
    """Write the listing of a directory."""
    Manifest(LISTED, dict.fromkeys(sorted(names), "")).write(directory / LISTING)


def check_listed(directory: Path, names: Iterable[str], sign: tuple[str, bytes]) -> None:
    """Raise FileExistsError if a directory has one of `names` and its listing does not.

    sign: a name, and how its content begins if it is ours; then the directory may lack a listing.
    """
    if not os.path.lexists(directory / LISTING) and _begins_with(directory / sign[0], sign[1]):
        return
    for other in sorted({*names, LISTING} - {*listed(directory)}):
        path = directory / other
        if is_foreign(path) if other == LISTING else os.path.lexists(path):
            why = f"{other} already exists, and was not written by this command"
            raise FileExistsError(errno.EEXIST, why, str(directory / other))


def _begins_with(path: Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def write_listed(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a directory that may hold others, and list them; `check_listed` first."""
    write_listing(directory, {*listed(directory), *contents})
    for name, content in contents.items():
        write_bytes(directory / name, content)
