"""MLflow's environment variables and the store of a run. Does not import MLflow."""

import errno
import json
import os
import posixpath
import re
import sqlite3
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lth_scale.config import directories
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.texts import brief
from lth_scale.tracking.mlflow import journal

# Schemes of a tracking URI, besides those of plugins; MLflow 3.17 no longer supports files.
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
LONGEST_PATH = 504  # bytes that SQLite opens, with room for the suffix of its own journal
COLUMNS = {"experiment_id", "artifact_location", "lifecycle_stage"}  # of MLflow's `experiments`
LONGEST_NAME, LONGEST_TAG = 500, 8000  # characters that MLflow stores
# Tags that runs have anyway, and those that MLflow sets from other arguments.
RESERVED = {
    *("task", "base_model", "seed", "note", "control", "curve", "round", "report"),
    *("lth_scale.key", "mlflow.runName", "mlflow.note.content"),
}


def experiment() -> tuple[str, str]:
    """Return MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID; empty if not set."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", ""), os.environ.get("MLFLOW_EXPERIMENT_ID", "")


def tags() -> dict[str, str]:
    """Return MLFLOW_TAGS, a JSON object, as tags without secrets. Raises BadInput."""
    text = os.environ.get("MLFLOW_TAGS") or "{}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BadInput(
            f"MLFLOW_TAGS {brief(text)}: not a JSON object; use an object such as "
            """'{"team": "nlp"}', or unset it"""
        )
    clean = redacted({key: str(value) for key, value in values.items()})
    for key, value in clean.items():
        name = f"MLFLOW_TAGS: the tag {brief(key)!r}"
        if key in RESERVED:
            raise BadInput(f"{name} is set by lth_scale on every run; use another name")
        is_outside = posixpath.normpath(key) != key or key.startswith(("/", ".."))
        if is_outside or key == "." or not re.fullmatch(r"[\w./: -]{1,250}", key):
            raise BadInput(
                f"{name} has a name that MLflow does not accept; use at most 250 letters, digits "
                "and characters of '_-./: '"
            )
        if len(value) > LONGEST_TAG:
            raise BadInput(f"{name} has {len(value):,} characters; use at most {LONGEST_TAG:,}")
    return clean


def tracking_uri(output_dir: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the local store of an output directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store(output_dir)


def local_store(directory: Path) -> str:
    """Return the local store: `mlflow.db` in the parent, or inside if that is not writable.

    A directory keeps the store that it started with.
    """
    home = directory.resolve()
    outer, inner = address(home.parent / "mlflow.db"), address(home / "mlflow.db")
    paths = (home / "mlflow.json", *home.glob("seeds/*/mlflow.json"))
    known = {progress.store for progress in map(journal.Progress.read, paths) if progress}
    for store in (outer, inner):
        if store in known:
            return store
    try:
        directories.check_writable(home.parent)
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return inner
    return outer


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


def check_run(output_dir: Path) -> None:
    """Raise BadInput if the run in this output directory cannot be reported to MLflow."""
    check_variables()
    store = tracking_uri(output_dir)
    scheme, separator, _ = store.partition("://")
    known = (*SCHEMES, *entry_points(group="mlflow.tracking_store").names)
    if store != "databricks" and not (separator and scheme.split("+")[0] in known):
        raise BadInput(
            f"MLFLOW_TRACKING_URI {without_secrets(store)}: not a store that MLflow supports; "
            "use http://HOST:5000 or sqlite:///FILE, or --report_to none"
        )
    _check_store(store)
    for path in journal.journals(output_dir):
        try:
            journal.check(path)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: {error}; move it away, or use --report_to none") from None


def check_variables() -> None:
    """Raise BadInput for values that MLflow does not accept; warn of a variable that is ignored."""
    name, _ = experiment()
    if len(name) > LONGEST_NAME:
        raise BadInput(
            f"MLFLOW_EXPERIMENT_NAME {brief(name)}: longer than the {LONGEST_NAME} characters "
            "that MLflow accepts; use a shorter name"
        )
    tags()
    if os.environ.get("MLFLOW_RUN_ID"):
        warn("MLFLOW_RUN_ID is ignored: each command creates its own MLflow runs")


def _check_store(store: str) -> None:
    path, is_set = database(store), bool(os.environ.get("MLFLOW_TRACKING_URI"))
    try:
        if path:
            check_database(path)
            if is_set:
                directories.check_writable(path.parent)
        elif store.startswith(("http:", "https:")) and not _has_host(store):
            raise ValueError("has no host, or no valid port")
    except (OSError, ValueError) as error:
        why = f"cannot be written ({error.strerror})" if isinstance(error, OSError) else error
        name = f"MLFLOW_TRACKING_URI {without_secrets(store)}" if is_set else f"MLflow store {path}"
        raise BadInput(
            f"{name}: {why}; set MLFLOW_TRACKING_URI to sqlite:///FILE or http://HOST:5000, or "
            "use --report_to none"
        ) from None


def _has_host(store: str) -> bool:
    try:
        return bool(urlsplit(store).hostname) and urlsplit(store).port != 0
    except ValueError:
        return False


def check_database(path: Path) -> None:
    """Raise ValueError with the reason unless a file is, or can become, MLflow's database."""
    try:
        if len(os.fsencode(os.path.realpath(path))) > LONGEST_PATH:
            raise ValueError(
                f"its path is longer than the {LONGEST_PATH} bytes that SQLite supports"
            )
        str(path).encode()
        if not path.exists():
            if path.is_symlink():
                raise ValueError("is a broken link")
            return
        if not path.is_file():
            raise ValueError("is not a file")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ValueError("cannot be read and written")
    except UnicodeEncodeError:
        raise ValueError("its path is not valid UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot be opened ({error.strerror})") from None
    _check_tables(path)


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
