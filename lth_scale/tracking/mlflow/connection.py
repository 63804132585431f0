"""Connecting to an MLflow store and its experiment."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment

from lth_scale.config import locks
from lth_scale.distributed import compat
from lth_scale.tracking.mlflow import stores, variables
from lth_scale.tracking.mlflow.view import view

NOTE = "mlflow.note.content"  # Markdown that MLflow shows with a run or an experiment
VIEW = "mlflow.sharedViewState.curves"
ABOUT = """**Score against sparsity. Each curve is a mean over seeds; its step is the percentage of weights pruned.**

- `IMP`: the subnetwork that iterative magnitude pruning found, trained from the pre-trained weights; at 0 % the full \
network. `IMP of mlm`: the ticket of that other task.
- `random_mask`, `reinit`, `one_shot` and so on: controls, a mask or weights that were not found. `dense`: no mask.

A curve's name goes on with its task and its model, and ends in a digest of the flags: only runs that differ in \
nothing but the seed share one. Open a run for its table and figure, its data and its rounds; *Models* for the \
tickets; *Model registry* for those that match the full network, under the rule that the alias names."""


def link(run: str, path: str) -> str:
    """Where the server that shows a run's page has an artifact of it."""
    return f"get-artifact?run_uuid={run}&path={path}"


def connect(store: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment there. A local store is made by one process alone.

    An experiment that was deleted is restored: MLflow keeps its name. Raises ValueError where a local database is
    another program's, and what MLflow raises.
    """
    path = stores.database(store)
    local = Path(os.path.realpath(path)) if path else None
    compat.silence_database()
    with locks.exclusive(local) if local else nullcontext():
        client = open_database(store, path) if path else MlflowClient(tracking_uri=store)
        found = find_experiment(client)
        if found and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        artifacts = (
            (local.parent / "mlartifacts").as_uri() if local else None
        )  # a server knows where its own go
        experiment = (
            found.experiment_id
            if found
            else client.create_experiment(variables.name(), artifact_location=artifacts)
        )
        of_others = found and (NOTE in found.tags or found.name != variables.EXPERIMENT)
        for name, value in {VIEW: view(), **({} if of_others else {NOTE: ABOUT})}.items():
            if not found or found.tags.get(name) != value:
                client.set_experiment_tag(experiment, name, value)
        return client, experiment


def find_experiment(client: MlflowClient) -> Experiment | None:
    """The experiment that MLflow's variables name; None where it is to be made. Raises ValueError for an unknown id."""
    number = variables.number()
    if variables.is_named() or not number:
        found = client.get_experiment_by_name(variables.name())
    else:
        found = client.get_experiment(number)
    if number and (not found or found.experiment_id != number):
        raise ValueError(
            f"MLFLOW_EXPERIMENT_ID {number} is not that of the experiment {variables.name()!r}"
        )
    return found


def open_database(store: str, path: Path) -> MlflowClient:
    """A client of a local database, whose tables are made where there are none. Raises ValueError where it is foreign."""
    try:
        stores.check(path)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    client = MlflowClient(tracking_uri=store)
    compat.create_tables(client)
    return client


def all_pages(search: Callable[..., Any], *given: Any) -> list[Any]:
    """Everything that one of the client's searches finds."""
    page = search(*given)
    found = list(page)
    while page.token:
        page = search(*given, page_token=page.token)
        found += page
    return found
