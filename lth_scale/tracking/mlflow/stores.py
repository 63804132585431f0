"""MLflow's stores: the database beside a directory, whether it can be MLflow's, and what helps where one fails."""

import errno
import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lth_scale.config import directories
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import reason
from lth_scale.tracking import journal

LONGEST = 504  # bytes of a path that SQLite opens, beside a journal of its own
BRIEF = {408, 409, 429}  # answers of HTTP that a later attempt may not get
# What a store says that takes nothing until somebody mends it, and how.
REMEDIES = {
    r"out-of-date database schema|Can't locate revision": "another version of MLflow made it: back it up and run "
    "`mlflow db upgrade {store}`, or install that version",
    r"UNAUTHENTICATED|UNAUTHORIZED|PERMISSION_DENIED|error code 40[13]": "set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of somebody who may write there",
    r"authentication failed|[Aa]ccess denied|Login failed|no password supplied|(role|database) .* does not exist|"
    r"Unknown database": "correct the user, password and database in MLFLOW_TRACKING_URI",
    r"readonly database|unable to open database|[Pp]ermission denied|Read-only file": "let this user write the "
    "database and its directory",
    r"No module named": "install that package",
    r"MLFLOW_EXPERIMENT_ID|No Experiment with id|Invalid experiment ID": "correct or unset MLFLOW_EXPERIMENT_ID",
    r"file is not a database|is malformed": "move the file away, and all is sent to a new one",
    r"(?i)certificate verify failed": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the server's certificate",
    r"(?i)wrong_version_number|wrong version number|ENDPOINT_NOT_FOUND|error code (3\d\d|40[45]) |"
    "not in a valid JSON|invalid url|no host supplied|(could not|failed to) parse": "no MLflow "
    "answers there: correct MLFLOW_TRACKING_URI",
}
OURS = {
    "experiment_id",
    "artifact_location",
    "lifecycle_stage",
}  # columns of MLflow's table of experiments


def address(path: Path) -> str:
    """The URI of a database file. SQLAlchemy takes `%` for an escape and `?` for the beginning of a query."""
    escaped = str(path).replace("%", "%25").replace("?", "%3F")
    # With the driver in its name, MLflow does not make the directories of the escaped path.
    return f"sqlite:///{path}" if escaped == str(path) else f"sqlite+pysqlite:///{escaped}"


def database(store: str) -> Path | None:
    """The file of a SQLite store; None for other stores, and for a database in memory."""
    parts = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", store, re.DOTALL)
    name = unquote(parts[1]) if parts else ""
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    return Path(os.path.abspath(name)) if name not in ("", ":memory:") else None


def beside(directory: Path) -> str:
    """The store of an output directory: `mlflow.db` in its parent, or inside where the parent cannot be written.

    A directory goes on with the store that it began with.
    """
    home = directory.resolve()
    outer, inner = home.parent / "mlflow.db", home / "mlflow.db"
    notes = [
        journal.read_notes(path)
        for path in (home / "mlflow.json", *home.glob("seeds/*/mlflow.json"))
    ]
    begun = [each["store"] for each in notes if each]
    known = next((path for path in (outer, inner) if address(path) in begun), None)
    return address(known or (inner if _is_closed(home.parent) else outer))


def _is_closed(directory: Path) -> bool:
    try:
        directories.check_writable(directory)
    except PermissionError:
        return True
    except OSError as problem:
        return problem.errno == errno.EROFS
    return False


def has_host(store: str) -> bool:
    """False for the address of a server that has no host, or no number for a port."""
    if not store.startswith(("http:", "https:")):
        return True
    try:
        return bool(urlsplit(store).hostname) and urlsplit(store).port != 0
    except ValueError:
        return False


def check(path: Path) -> None:
    """Raise ValueError, saying why, unless a file is a database of MLflow or can become one. Changes nothing."""
    try:
        if len(os.fsencode(os.path.realpath(path))) > LONGEST:
            raise ValueError(f"its path is longer than the {LONGEST} bytes that SQLite takes")
        str(path).encode()
        if path.is_symlink() and not path.exists():
            raise ValueError("is a link that leads nowhere")
        if not path.exists():
            return
        if not path.is_file():
            raise ValueError("is not a file")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ValueError("cannot be read and written")
    except UnicodeEncodeError:
        raise ValueError("its path is not in UTF-8") from None
    except OSError as problem:
        raise ValueError(f"cannot be opened ({problem.strerror})") from None
    _check_tables(path)


def _check_tables(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as found:
            tables = {
                name
                for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            columns = {
                name
                for (name,) in found.execute("SELECT name FROM pragma_table_info('experiments')")
            }
    except sqlite3.OperationalError:
        return  # busy, or left by a process that was killed: whoever opens it to write can mend it
    except sqlite3.DatabaseError:
        raise ValueError("is not a database of SQLite") from None
    if tables - {"alembic_version"} and not columns >= OURS:
        raise ValueError("is the database of another program")


def may_pass(problem: Exception) -> bool:
    """True where a later attempt may succeed though nobody mends anything: nobody answers, or somebody is busy."""
    if remedy(problem, ""):
        return False
    status = getattr(problem, "get_http_status_code", lambda: None)()
    if status is None:
        return not isinstance(
            problem, LookupError | TypeError | ValueError | AttributeError | ImportError
        )
    return (
        status >= 500
        or status in BRIEF
        or getattr(problem, "error_code", "") == "RESOURCE_ALREADY_EXISTS"
    )


def remedy(problem: Exception, store: str) -> str:
    """Why a store takes nothing, and what helps; empty where it may take other records, or these later."""
    text = f"{getattr(problem, 'error_code', '')} {problem}"
    helps = next((helps for pattern, helps in REMEDIES.items() if re.search(pattern, text)), "")
    known = shlex.quote(without_secrets(store))
    return (
        f"{reason(problem).rstrip('.')}; {helps.format(store=known)}, or give --report_to none"
        if helps
        else ""
    )
