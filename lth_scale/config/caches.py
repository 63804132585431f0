"""Where libraries keep what they make: a directory that can be written, in the place of one that cannot.

It is asked before those libraries are imported, which is when they read their variables.
"""

import errno
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.notices import warn

DATA = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_METRICS_CACHE")
COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def usual() -> dict[str, Path]:
    """Where libraries keep what they make while no variable names another place, by that variable."""
    home, temporary = Path(os.path.expanduser("~")), Path(tempfile.gettempdir())
    own = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or own / "huggingface")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "HF_DATASETS_CACHE": hub / "datasets",
        "HF_MODULES_CACHE": hub / "modules",
        "HF_METRICS_CACHE": hub / "metrics",
        "MPLCONFIGDIR": settings / "matplotlib",
        "TORCH_EXTENSIONS_DIR": own / "torch_extensions",
        "TORCHINDUCTOR_CACHE_DIR": temporary,
        "TRITON_CACHE_DIR": home / ".triton/cache",
    }


@cache
def settle(*names: str) -> None:
    """Put a directory of this user's own in the place of each cache that cannot be written, and say so in a line.

    names: variables of `usual`. Raises OSError where there is no directory for temporary files either.
    """
    _settle_temporary()
    _settle_home()
    lost = {}
    for name in names:
        place = Path(os.environ.get(name) or usual()[name]).expanduser()
        try:
            files.check_writable(place)
        except OSError as problem:
            lost[name] = f"{name} {place} ({problem.strerror})"
    for name in lost:
        os.environ[name] = str(spare() / name.lower())
    if lost:
        warn(f"cannot be written: {', '.join(lost.values())}; {spare()} is used instead")


def spare() -> Path:
    """A directory for temporary files that is this user's alone, the same each time. Raises OSError."""
    path = Path(tempfile.gettempdir(), f"lth_scale-{os.getuid()}")
    path.mkdir(0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EACCES, f"{path} is not this user's alone", str(path))
    return path


def _settle_temporary() -> None:
    given, place = os.environ.get("TMPDIR"), tempfile.gettempdir()
    if given and os.path.abspath(given) != place:
        os.environ["TMPDIR"] = place
        warn(f"cannot be written: TMPDIR {given}; {place} is used instead")


def _settle_home() -> None:
    """Where HOME is not set and nobody knows of one, libraries would make directories called `~`."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(spare())
        os.environ.setdefault(
            "LOGNAME", str(os.getuid())
        )  # else who asks for the user's name fails
        warn(f"HOME is not set, and this user has none; {spare()} is used instead")


def hub_cache_problem(problem: BaseException) -> str:
    """What to say of an error that comes from the Hub's cache, or nothing."""
    from huggingface_hub import constants

    found: BaseException | None = problem
    while found and not _lies_below(found, constants.HF_HUB_CACHE):
        found = found.__cause__ or found.__context__
    if not isinstance(found, OSError):
        return ""
    return (
        f"HF_HUB_CACHE {constants.HF_HUB_CACHE}: cannot be written ({found.strerror}); "
        "set it to a directory that can be written"
    )


def _lies_below(problem: BaseException, directory: str) -> bool:
    is_refused = isinstance(problem, OSError) and problem.errno in FORBIDDEN
    return is_refused and Path(str(getattr(problem, "filename", ""))).is_relative_to(directory)
