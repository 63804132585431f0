"""The cache of encoded data."""

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
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.exit_codes import FULL
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat

log = logging.getLogger("lth_scale")
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow's


def fingerprint(*key: Any) -> str:
    """A name in the `datasets` cache for what `key` fixes."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def materialize(
    rows: Callable[[], Iterable[dict]], key: str, features: Features | None = None
) -> Dataset:
    """Write `rows()` to the `datasets` cache under `key`, once, by the main process. Raises the BadInput of a row."""
    with PartialState().main_process_first():
        return cached(
            lambda key: Dataset.from_generator(rows, features=features, fingerprint=key), key
        )


def cached(make: Callable[[str], Dataset], key: str) -> Dataset:
    """What `make` keeps in the `datasets` cache under `key`, or beside that where it is damaged.

    Raises the BadInput of a row, and BadInput where the cache cannot be written.
    """
    spare = fingerprint(key, "spare")
    for name in (key, spare):
        try:
            rows = make(name)
            check_ends(rows)
            return rows
        except Exception as problem:  # damage makes `datasets` and Arrow raise many kinds
            wrapped = isinstance(problem, DatasetGenerationError) and problem.__cause__
            cause = wrapped or problem
            number = cause.errno if isinstance(cause, OSError) else None  # Arrow's have none
            is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
                words in str(cause) for words in FULL
            )
            if number and not is_full:
                raise BadInput(
                    f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}: cannot be used "
                    f"({first_line(cause)}); set it to a directory that can be written"
                ) from problem
            if is_full:
                raise Stopped(
                    f"HF_DATASETS_CACHE {datasets.config.HF_DATASETS_CACHE}: is full ({first_line(cause)}); free some "
                    "room, or set it to another directory"
                ) from problem
            if isinstance(cause, BadInput) or name == spare:
                raise cause from None
            why = first_line(problem)
            log.warning("an entry of the datasets cache is damaged (%s), and is made anew", why)
    raise AssertionError("unreachable")


def check_ends(rows: Dataset) -> None:
    """Raise ValueError where a file of `rows` was not written to its end, or is no table."""
    for file in rows.cache_files:
        with open(file["filename"], "rb") as content:
            content.seek(max(0, os.path.getsize(file["filename"]) - len(END)))
            if content.read() != END:
                raise ValueError(f"{file['filename']} is cut")
    rows.data.validate(full=True)


def settle_for_cache(path: str, kind: str) -> None:
    """Where the Hub cannot be reached or fails, go offline: the cache is asked at once, without minutes of retries."""
    try:
        HfApi().repo_info(path, repo_type=kind, timeout=10)
        return
    except HfHubHTTPError as problem:
        if problem.response.status_code < 500:
            return  # the Hub answered; what it said is for the loading code to tell
    except Exception:
        pass
    compat.go_offline()
