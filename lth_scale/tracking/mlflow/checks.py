"""Whether a run can be reported to MLflow: its variables, store and journals."""

import os
from importlib.metadata import entry_points
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import without_secrets
from lth_scale.tracking.mlflow import journal, stores, variables

# Schemes of a tracking URI, beside those of plugins; MLflow 3.17 no longer supports files.
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check(output_dir: Path) -> None:
    """Raise BadInput if the run in this output directory cannot be reported to MLflow."""
    variables.check()
    store = stores.tracking_uri(output_dir)
    _check_scheme(store)
    _check_store(store)
    for path in journal.journals(output_dir):
        try:
            journal.check(path)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: {error}; move it away, or use --report_to none") from None


def _check_scheme(store: str) -> None:
    scheme, separator, _ = store.partition("://")
    known = (*SCHEMES, *entry_points(group="mlflow.tracking_store").names)
    if store != "databricks" and not (separator and scheme.split("+")[0] in known):
        raise BadInput(
            f"MLFLOW_TRACKING_URI {without_secrets(store)}: not a store that MLflow supports; "
            "use http://HOST:5000 or sqlite:///FILE, or --report_to none"
        )


def _check_store(store: str) -> None:
    path, is_set = stores.database(store), bool(os.environ.get("MLFLOW_TRACKING_URI"))
    try:
        if path:
            stores.check(path)
        elif not stores.has_host(store):
            raise ValueError("has no host, or no valid port")
        if path and is_set:
            directories.check_writable(path.parent)
    except (OSError, ValueError) as error:
        why = f"cannot be written ({error.strerror})" if isinstance(error, OSError) else error
        name = f"MLFLOW_TRACKING_URI {without_secrets(store)}" if is_set else f"MLflow store {path}"
        raise BadInput(
            f"{name}: {why}; set MLFLOW_TRACKING_URI to sqlite:///FILE or http://HOST:5000, or "
            "use --report_to none"
        ) from None
