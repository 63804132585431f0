"""MLflow's environment variables: the experiment and tags of runs. Does not import MLflow."""

import json
import os
import posixpath
import re

from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.redaction import redacted
from lth_scale.config.texts import brief

EXPERIMENT = "lth_scale"
LONGEST_NAME, LONGEST_TAG = 500, 8000  # characters that MLflow stores
# Tags that runs have anyway, and those that MLflow sets from other arguments.
RESERVED = {
    *("task", "base_model", "seed", "note", "control", "curve", "round", "report"),
    *("lth_scale.key", "mlflow.runName", "mlflow.note.content"),
}


def experiment_name() -> str:
    """Return MLFLOW_EXPERIMENT_NAME, or `lth_scale`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def experiment_id() -> str:
    """Return MLFLOW_EXPERIMENT_ID; empty if it is not set."""
    return os.environ.get("MLFLOW_EXPERIMENT_ID", "")


def has_experiment_name() -> bool:
    """True if MLFLOW_EXPERIMENT_NAME is set."""
    return bool(os.environ.get("MLFLOW_EXPERIMENT_NAME"))


def has_experiment() -> bool:
    """True if a variable names an experiment."""
    return has_experiment_name() or bool(experiment_id())


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
        _check_tag(key, value)
    return clean


def _check_tag(key: str, value: str) -> None:
    name = f"MLFLOW_TAGS: the tag {brief(key)!r}"
    if key in RESERVED:
        raise BadInput(f"{name} is set by lth_scale on every run; use another name")
    is_outside = posixpath.normpath(key) != key or key.startswith(("/", ".."))
    if is_outside or key == "." or not re.fullmatch(r"[\w./: -]{1,250}", key):
        raise BadInput(
            f"{name} has a name that MLflow does not accept; use at most 250 letters, digits and "
            "characters of '_-./: '"
        )
    if len(value) > LONGEST_TAG:
        raise BadInput(f"{name} has {len(value):,} characters; use at most {LONGEST_TAG:,}")


def check() -> None:
    """Raise BadInput for values that MLflow does not accept; warn of a variable that is ignored."""
    name = experiment_name()
    if len(name) > LONGEST_NAME:
        raise BadInput(
            f"MLFLOW_EXPERIMENT_NAME {brief(name)}: longer than the {LONGEST_NAME} characters "
            "that MLflow accepts; use a shorter name"
        )
    tags()
    if os.environ.get("MLFLOW_RUN_ID"):
        warn("MLFLOW_RUN_ID is ignored: each command creates its own MLflow runs")
