"""Failures of MLflow stores: which are transient, and the remedy for the others."""

import re
import shlex

from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import reason

RETRIED = {408, 409, 429}  # HTTP statuses below 500 that may not occur again
# What a store that accepts nothing until somebody acts answers, and the remedy.
REMEDIES = {
    "out-of-date database schema|Can't locate revision": "another version of MLflow created it: "
    "back it up and run `mlflow db upgrade {store}`, or install that version",
    "UNAUTHENTICATED|UNAUTHORIZED|PERMISSION_DENIED|error code 40[13]": "set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user "
    "with write access",
    "authentication failed|[Aa]ccess denied|Login failed|no password supplied|"
    "(role|database) .* does not exist|Unknown database": "correct the user, password and "
    "database in MLFLOW_TRACKING_URI",
    "readonly database|unable to open database|[Pp]ermission denied|Read-only file": "make the "
    "database and its directory writable for this user",
    "No module named": "install that package",
    "MLFLOW_EXPERIMENT_ID|No Experiment with id|Invalid experiment ID": "correct or unset "
    "MLFLOW_EXPERIMENT_ID",
    "file is not a database|is malformed": "move the file away to send all records to a new one",
    "(?i)certificate verify failed": "set MLFLOW_TRACKING_SERVER_CERT_PATH to the server's "
    "certificate",
    r"(?i)wrong_version_number|wrong version number|ENDPOINT_NOT_FOUND|"
    r"error code (3\d\d|40[45]) |not in a valid JSON|invalid url|no host supplied|"
    "(could not|failed to) parse": "no MLflow server answers there: correct MLFLOW_TRACKING_URI",
}


class PermanentFailure(Exception):
    """A store accepts nothing until the user acts; the message says why and what to do."""


def is_transient(error: Exception) -> bool:
    """True if a later attempt may succeed by itself: the store is down or busy."""
    if remedy(error, ""):
        return False
    status = getattr(error, "get_http_status_code", lambda: None)()
    if status is None:
        permanent = LookupError | TypeError | ValueError | AttributeError | ImportError
        return not isinstance(error, permanent)
    is_taken = getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS"
    return status >= 500 or status in RETRIED or is_taken


def remedy(error: Exception, store: str) -> str:
    """Return why a store accepts nothing and the remedy; empty if it may accept other records."""
    text = f"{getattr(error, 'error_code', '')} {error}"
    steps = next((steps for pattern, steps in REMEDIES.items() if re.search(pattern, text)), "")
    if not steps:
        return ""
    steps = steps.format(store=shlex.quote(without_secrets(store)))
    return f"{reason(error).rstrip('.')}; {steps}, or use --report_to none"
