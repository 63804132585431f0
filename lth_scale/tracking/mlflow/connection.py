"""Connecting to an MLflow store and its experiment."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment

from lth_scale.config import files, locks
from lth_scale.distributed import compat
from lth_scale.tracking.mlflow import stores, variables
from lth_scale.tracking.mlflow.view import view

NOTE = "mlflow.note.content"  # Markdown that MLflow shows with a run or an experiment
VIEW = "mlflow.sharedViewState.curves"
ABOUT = Path(__file__).with_name("about.md")  # what MLflow shows with the experiment


def link(run: str, path: str) -> str:
    """Return the address of a run's artifact, relative to the run's page."""
    return f"get-artifact?run_uuid={run}&path={path}"


def connect(store: str) -> tuple[MlflowClient, str]:
    """Return a client of the store and the id of the experiment there, which is created if needed.

    Only one process at a time creates a local store. A deleted experiment is restored, because
    MLflow reserves its name. Raises ValueError if a local database belongs to another program,
    and what MLflow raises.
    """
    path = stores.database(store)
    local = Path(os.path.realpath(path)) if path else None
    compat.silence_database()
    with locks.exclusive(local) if local else nullcontext():
        client = open_database(store, path) if path else MlflowClient(tracking_uri=store)
        # A server decides itself where artifacts go.
        artifacts = (local.parent / "mlartifacts").as_uri() if local else None
        return client, open_experiment(client, artifacts)


def open_experiment(client: MlflowClient, artifacts: str | None) -> str:
    """Return the id of the experiment. It gets our view and, if it is ours, our description."""
    name, tags = variables.experiment_name(), {VIEW: view()}
    experiment = find_experiment(client)
    is_ours = not experiment or experiment.name == variables.EXPERIMENT
    if not experiment:
        experiment = client.get_experiment(
            client.create_experiment(name, artifact_location=artifacts)
        )
    if is_ours and NOTE not in experiment.tags:
        tags[NOTE] = files.read_text(ABOUT)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def find_experiment(client: MlflowClient) -> Experiment | None:
    """Return the experiment that the variables name; None if it does not exist yet.

    Raises ValueError for an unknown id.
    """
    number = variables.experiment_id()
    if variables.has_experiment_name() or not number:
        experiment = client.get_experiment_by_name(variables.experiment_name())
    else:
        experiment = client.get_experiment(number)
    if number and (not experiment or experiment.experiment_id != number):
        raise ValueError(
            f"MLFLOW_EXPERIMENT_ID {number} is not the id of the experiment "
            f"{variables.experiment_name()!r}"
        )
    return experiment


def open_database(store: str, path: Path) -> MlflowClient:
    """Return a client of a local database, whose tables are created if needed.

    Raises ValueError if it belongs to another program. MLflow keeps connections to a file for the
    life of the process, even after the file was deleted; they are closed here.
    """
    try:
        stores.check(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    client = MlflowClient(tracking_uri=store)
    compat.create_tables(client)
    return client


def all_pages(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the results of a client's search from all pages."""
    page = search(*arguments)
    results = list(page)
    while page.token:
        page = search(*arguments, page_token=page.token)
        results += page
    return results
