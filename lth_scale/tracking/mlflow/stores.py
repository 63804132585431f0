"""MLflow stores: the tracking URI of a run, and whether a file can be MLflow's database."""

import errno
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lth_scale.config import directories
from lth_scale.tracking.mlflow.progress import Progress

LONGEST_PATH = 504  # bytes that SQLite opens, beside a journal of its own
COLUMNS = {"experiment_id", "artifact_location", "lifecycle_stage"}  # of MLflow's `experiments`


def tracking_uri(output_dir: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the local store of an output directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store(output_dir)


def local_store(directory: Path) -> str:
    """Return the local store: `mlflow.db` in the parent, or inside if that is not writable.

    A directory keeps the store that it started with.
    """
    home = directory.resolve()
    outer, inner = home.parent / "mlflow.db", home / "mlflow.db"
    paths = (home / "mlflow.json", *home.glob("seeds/*/mlflow.json"))
    known = {progress.store for progress in map(Progress.read, paths) if progress}
    for path in (outer, inner):
        if address(path) in known:
            return address(path)
    return address(inner if _is_read_only(home.parent) else outer)


def _is_read_only(directory: Path) -> bool:
    try:
        directories.check_writable(directory)
    except PermissionError:
        return True
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def address(path: Path) -> str:
    """Return the URI of a database file; SQLAlchemy unescapes `%` and splits at `?`."""
    escaped = str(path).replace("%", "%25").replace("?", "%3F")
    # With a driver in the scheme, MLflow does not create the directories of the escaped path.
    return f"sqlite:///{path}" if escaped == str(path) else f"sqlite+pysqlite:///{escaped}"


def database(store: str) -> Path | None:
    """Return the file of a SQLite store; None for other stores and databases in memory."""
    parts = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", store, re.DOTALL)
    name = unquote(parts[1]) if parts else ""
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    return Path(os.path.abspath(name)) if name not in ("", ":memory:") else None


def has_host(store: str) -> bool:
    """False for the URI of a server without a host, or with an invalid port."""
    if not store.startswith(("http:", "https:")):
        return True
    try:
        return bool(urlsplit(store).hostname) and urlsplit(store).port != 0
    except ValueError:
        return False


def check(path: Path) -> None:
    """Raise ValueError with the reason unless a file is, or can become, MLflow's database."""
    try:
        _check_file(path)
    except UnicodeEncodeError:
        raise ValueError("its path is not valid UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot be opened ({error.strerror})") from None
    if path.exists():
        _check_tables(path)


def _check_file(path: Path) -> None:
    if len(os.fsencode(os.path.realpath(path))) > LONGEST_PATH:
        raise ValueError(f"its path is longer than the {LONGEST_PATH} bytes that SQLite supports")
    str(path).encode()
    if path.is_symlink() and not path.exists():
        raise ValueError("is a broken link")
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError("is not a file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise ValueError("cannot be read and written")


def _check_tables(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = {name for (name,) in tables}
            columns = connection.execute("SELECT name FROM pragma_table_info('experiments')")
            is_mlflow = {name for (name,) in columns} >= COLUMNS
    except sqlite3.OperationalError:
        return  # busy, or left by a killed process: the next writer recovers it
    except sqlite3.DatabaseError:
        raise ValueError("is not a SQLite database") from None
    if names - {"alembic_version"} and not is_mlflow:
        raise ValueError("is the database of another program")
