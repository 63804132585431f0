"""The `datasets` cache of rows and encoded data."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import datasets
from accelerate import PartialState
from datasets import Dataset, Features
from datasets.exceptions import DatasetGenerationError

from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.exit_codes import FULL
from lth_scale.config.texts import first_line

log = logging.getLogger("lth_scale")
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # how an Arrow stream ends


def fingerprint(*key: Any) -> str:
    """A name in the cache for what `key` determines."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def materialize(
    rows: Callable[[], Iterable[dict]], key: str, features: Features | None = None
) -> Dataset:
    """Write `rows()` to the cache under `key`, once, on the main process first.

    Raises the BadInput of a row, and what `cached` raises.
    """

    def make(key: str) -> Dataset:
        return Dataset.from_generator(rows, features=features, fingerprint=key)

    with PartialState().main_process_first():
        return cached(make, key)


def cached(make: Callable[[str], Dataset], key: str) -> Dataset:
    """Return what `make` caches under `key`; if that entry is damaged, under a second key.

    Raises the BadInput of a row, BadInput if the cache is not writable, and Stopped if its disk is
    full.
    """
    try:
        return _make(make, key)
    except Exception as error:  # a damaged file makes `datasets` and Arrow raise many kinds
        _raise_cause(error)
        log.warning(
            "an entry of the datasets cache is damaged (%s): it is rebuilt", first_line(error)
        )
    try:
        return _make(make, fingerprint(key, "spare"))
    except Exception as error:
        _raise_cause(error)
        raise _cause(error) from None


def _make(make: Callable[[str], Dataset], key: str) -> Dataset:
    rows = make(key)
    check_complete(rows)
    return rows


def _cause(error: Exception) -> BaseException:
    """The error inside the one that `datasets` raises while it generates rows."""
    wrapped = isinstance(error, DatasetGenerationError) and error.__cause__
    return wrapped or error


def _raise_cause(error: Exception) -> None:
    """Raise BadInput or Stopped unless the error may come from a damaged cache entry."""
    cause = _cause(error)
    number = cause.errno if isinstance(cause, OSError) else None  # Arrow's errors have none
    cache = f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}"
    is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        words in str(cause) for words in FULL
    )
    if is_full:
        raise Stopped(
            f"{cache}: the disk is full ({first_line(cause)}); free some space, or set it to "
            "another directory"
        ) from error
    if number:
        raise BadInput(
            f"{cache}: cannot be used ({first_line(cause)}); set it to a writable directory"
        ) from error
    if isinstance(cause, BadInput):
        raise cause from None


def check_complete(rows: Dataset) -> None:
    """Raise ValueError if a cache file of `rows` is truncated or is not a valid table."""
    for file in rows.cache_files:
        with open(file["filename"], "rb") as content:
            content.seek(max(0, os.path.getsize(file["filename"]) - len(ARROW_END)))
            if content.read() != ARROW_END:
                raise ValueError(f"{file['filename']} is truncated")
    rows.data.validate(full=True)
