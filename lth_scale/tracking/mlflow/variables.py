"""What MLflow's variables say of the runs: their experiment, and tags of the user's own. Does not import MLflow."""

import json
import os
import posixpath
import re

from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.redaction import redacted
from lth_scale.config.texts import brief

EXPERIMENT = "lth_scale"
LONGEST_NAME, LONGEST_TAG = 500, 8000  # characters that MLflow takes
# Tags that the runs have in any case, and those that stand for what MLflow is given otherwise.
OURS = {
    "task",
    "base_model",
    "seed",
    "note",
    "control",
    "curve",
    "round",
    "report",
    "lth_scale.key",
}
OURS |= {"mlflow.runName", "mlflow.note.content"}


def name() -> str:
    """MLFLOW_EXPERIMENT_NAME, or `lth_scale`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def number() -> str:
    """MLFLOW_EXPERIMENT_ID, or nothing."""
    return os.environ.get("MLFLOW_EXPERIMENT_ID", "")


def is_named() -> bool:
    """True where MLFLOW_EXPERIMENT_NAME says something."""
    return bool(os.environ.get("MLFLOW_EXPERIMENT_NAME"))


def is_given() -> bool:
    """True where a variable names an experiment."""
    return is_named() or bool(number())


def tags() -> dict[str, str]:
    """MLFLOW_TAGS, a JSON object, as tags of a run; without secrets. Raises BadInput."""
    text = os.environ.get("MLFLOW_TAGS") or "{}"
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise BadInput(
            f"""MLFLOW_TAGS {brief(text)}: is no JSON object; give such as '{{"team": "nlp"}}', or unset it"""
        )
    found = redacted({key: str(value) for key, value in given.items()})
    for key, value in found.items():
        _check_tag(key, value)
    return found


def _check_tag(key: str, value: str) -> None:
    what = f"MLFLOW_TAGS: the tag {brief(key)!r}"
    if key in OURS:
        raise BadInput(f"{what} is one that every run here has already; give another name")
    outside = posixpath.normpath(key) != key or key.startswith(("/", ".."))
    if outside or key == "." or not re.fullmatch(r"[\w./: -]{1,250}", key):
        raise BadInput(
            f"{what} has a name that MLflow does not take; give letters, digits, '_', '-', '.', ':' and ' '"
        )
    if len(value) > LONGEST_TAG:
        raise BadInput(f"{what} has {len(value):,} characters; give {LONGEST_TAG:,} or fewer")


def check() -> None:
    """Raise BadInput where a variable holds what MLflow would not take; warn of one that is not followed."""
    if len(name()) > LONGEST_NAME:
        raise BadInput(
            f"MLFLOW_EXPERIMENT_NAME {brief(name())}: is longer than the {LONGEST_NAME} characters that MLflow takes; "
            "give a shorter one"
        )
    tags()
    if os.environ.get("MLFLOW_RUN_ID"):
        warn("MLFLOW_RUN_ID is not followed: a command makes MLflow runs of its own")
