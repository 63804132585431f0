"""Before torch is imported: replace cache directories that cannot be written.

Libraries read the variables that name these directories when they are imported.
"""

import errno
import gc
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lth_scale.config.directories import check_writable
from lth_scale.config.errors import BadInput, warn

DATA = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_METRICS_CACHE")
COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


@contextmanager
def first_imports() -> Iterator[None]:
    """Import torch and the like without garbage collection, after replacing unwritable caches.

    The collector would search the new modules repeatedly, which takes a sixth of the time of a
    short command (benchmarks/start.py). Raises BadInput if no directory can be written.
    """
    try:
        ensure_writable(*DATA)
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


def cache_directories() -> dict[str, Path]:
    """The libraries' default directories, by the variable that overrides them."""
    home, temporary = Path(os.path.expanduser("~")), Path(tempfile.gettempdir())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return {
        "HF_DATASETS_CACHE": hub / "datasets",
        "HF_MODULES_CACHE": hub / "modules",
        "HF_METRICS_CACHE": hub / "metrics",
        "MPLCONFIGDIR": Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "matplotlib"),
        "TORCH_EXTENSIONS_DIR": caches / "torch_extensions",
        "TORCHINDUCTOR_CACHE_DIR": temporary,
        "TRITON_CACHE_DIR": home / ".triton/cache",
    }


@cache
def ensure_writable(*names: str) -> None:
    """Set each variable whose directory cannot be written to a fallback, and warn once.

    names: keys of `cache_directories`. Raises OSError if the temporary directory cannot be written
    either.
    """
    temporary, used = os.environ.get("TMPDIR"), tempfile.gettempdir()
    if temporary and os.path.abspath(temporary) != used:
        os.environ["TMPDIR"] = used
        warn(f"cannot be written: TMPDIR {temporary}; {used} is used instead")
    if os.path.expanduser("~") == "~":  # libraries would create directories named `~`
        os.environ["HOME"] = str(fallback())
        os.environ.setdefault("LOGNAME", str(os.getuid()))  # which getpass.getuser requires
        warn(f"HOME is not set, and this user has none; {fallback()} is used instead")
    problems = []
    for name in names:
        directory = Path(os.environ.get(name) or cache_directories()[name]).expanduser()
        try:
            check_writable(directory)
        except OSError as problem:
            problems.append(f"{name} {directory} ({problem.strerror})")
            os.environ[name] = str(fallback() / name.lower())
    if problems:
        warn(f"cannot be written: {', '.join(problems)}; {fallback()} is used instead")


def fallback() -> Path:
    """A temporary directory that only this user can write, the same each time. Raises OSError."""
    path = Path(tempfile.gettempdir(), f"lth_scale-{os.getuid()}")
    path.mkdir(0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, f"{path} is not this user's alone", str(path))
    return path


def hub_cache_problem(problem: BaseException) -> str:
    """The message for an error from the Hub's cache; empty for any other error."""
    from huggingface_hub.constants import HF_HUB_CACHE

    error: BaseException | None = problem
    while error:
        if (
            isinstance(error, OSError)
            and error.errno in _FORBIDDEN
            and Path(str(error.filename)).is_relative_to(HF_HUB_CACHE)
        ):
            return (
                f"HF_HUB_CACHE {HF_HUB_CACHE}: cannot be written ({error.strerror}); "
                "set it to a directory that can be written"
            )
        error = error.__cause__ or error.__context__
    return ""
