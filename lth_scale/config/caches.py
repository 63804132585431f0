"""Libraries' cache directories: one that cannot be written is replaced by one that can.

Call before these libraries are imported, which is when they read their variables.
"""

import errno
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from lth_scale.config.directories import check_writable
from lth_scale.config.notices import warn

DATA = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_METRICS_CACHE")
COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def defaults() -> dict[str, Path]:
    """The libraries' default directories, by the variable that overrides them."""
    home, temporary = Path(os.path.expanduser("~")), Path(tempfile.gettempdir())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "HF_DATASETS_CACHE": hub / "datasets",
        "HF_MODULES_CACHE": hub / "modules",
        "HF_METRICS_CACHE": hub / "metrics",
        "MPLCONFIGDIR": settings / "matplotlib",
        "TORCH_EXTENSIONS_DIR": caches / "torch_extensions",
        "TORCHINDUCTOR_CACHE_DIR": temporary,
        "TRITON_CACHE_DIR": home / ".triton/cache",
    }


@cache
def ensure_writable(*names: str) -> None:
    """Set each variable whose directory cannot be written to a fallback, and warn once.

    names: keys of `defaults`. Raises OSError if there is no directory for temporary files either.
    """
    _ensure_temporary()
    _ensure_home()
    problems = {}
    for name in names:
        directory = Path(os.environ.get(name) or defaults()[name]).expanduser()
        try:
            check_writable(directory)
        except OSError as problem:
            problems[name] = f"{name} {directory} ({problem.strerror})"
    for name in problems:
        os.environ[name] = str(fallback() / name.lower())
    if problems:
        warn(f"cannot be written: {', '.join(problems.values())}; {fallback()} is used instead")


def fallback() -> Path:
    """A temporary directory that only this user can write, the same each time. Raises OSError."""
    path = Path(tempfile.gettempdir(), f"lth_scale-{os.getuid()}")
    path.mkdir(0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, f"{path} is not this user's alone", str(path))
    return path


def _ensure_temporary() -> None:
    directory, used = os.environ.get("TMPDIR"), tempfile.gettempdir()
    if directory and os.path.abspath(directory) != used:
        os.environ["TMPDIR"] = used
        warn(f"cannot be written: TMPDIR {directory}; {used} is used instead")


def _ensure_home() -> None:
    """Set HOME if it is unknown: libraries would create directories named `~`."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(fallback())
        # Without it, asking for the user's name fails.
        os.environ.setdefault("LOGNAME", str(os.getuid()))
        warn(f"HOME is not set, and this user has none; {fallback()} is used instead")


def hub_cache_problem(problem: BaseException) -> str:
    """The message for an error from the Hub's cache; empty for any other error."""
    from huggingface_hub import constants

    error: BaseException | None = problem
    while error and not _is_refused_below(error, constants.HF_HUB_CACHE):
        error = error.__cause__ or error.__context__
    if not isinstance(error, OSError):
        return ""
    return (
        f"HF_HUB_CACHE {constants.HF_HUB_CACHE}: cannot be written ({error.strerror}); "
        "set it to a directory that can be written"
    )


def _is_refused_below(problem: BaseException, directory: str) -> bool:
    """True for an OSError about permissions on a file in `directory`."""
    if not isinstance(problem, OSError) or problem.errno not in FORBIDDEN:
        return False
    return Path(str(problem.filename)).is_relative_to(directory)
