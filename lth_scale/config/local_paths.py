"""Values of flags that are local paths."""

import os
from pathlib import Path

from lth_scale.config.defaults import EMBEDDED


def is_local(name: str) -> bool:
    """Return True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()


def absolute(path: str | None) -> str | None:
    """Return a path that is valid in any working directory."""
    return path if path in (None, EMBEDDED) else os.path.abspath(str(path))


def absolute_model(name: str) -> str:
    """Return the name of a model, absolute if it is a local directory."""
    return os.path.abspath(name) if is_local(name) and name != EMBEDDED else name
