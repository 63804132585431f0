"""What a command does before it imports torch."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lth_scale.config import caches
from lth_scale.config.errors import BadInput


@contextmanager
def first_imports() -> Iterator[None]:
    """Import torch and the like without garbage collection, after replacing unwritable caches.

    The collector would go through the new modules again and again, which takes a sixth of the time
    of a short command (benchmarks/start.py). Raises BadInput if no directory can be written.
    """
    try:
        caches.ensure_writable(*caches.DATA)
    except OSError as problem:
        raise BadInput(
            f"TMPDIR: {problem.strerror}; set it to a directory that can be written"
        ) from problem
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_main_process() -> bool:
    """True in the first process of a launcher, and without a launcher."""
    return os.environ.get("RANK", "0") == "0"
