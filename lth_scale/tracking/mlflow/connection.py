"""Connecting to an MLflow store and its experiment."""

import base64
import json
import os
import zlib
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment

from lth_scale.config import directories, files
from lth_scale.distributed import compat
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.mlflow import settings

EXPERIMENT = "lth_scale"
NOTE = "mlflow.note.content"  # Markdown that MLflow shows with a run or an experiment
VIEW = "mlflow.sharedViewState.curves"


def link(run: str, path: str) -> str:
    """Return the address of a run's artifact, relative to the run's page."""
    return f"get-artifact?run_uuid={run}&path={path}"


def connect(store: str) -> tuple[MlflowClient, str]:
    """Return a client of the store and the id of the experiment there, which is created if needed.

    Only one process at a time creates a local store and its tables. Raises ValueError if a local
    database belongs to another program, and what MLflow raises.
    """
    compat.silence_database()
    path = settings.database(store)
    if not path:
        client = MlflowClient(tracking_uri=store)
        return client, _open_experiment(client, None)
    local = Path(os.path.realpath(path))
    with directories.exclusive(local):
        try:
            settings.check_database(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        client = MlflowClient(tracking_uri=store)
        compat.create_tables(client)
        return client, _open_experiment(client, (local.parent / "mlartifacts").as_uri())


def _open_experiment(client: MlflowClient, artifacts: str | None) -> str:
    """Return the id of the experiment that the variables name, which is created if needed.

    It gets our view and, if it is ours, our description. A deleted experiment is restored, because
    MLflow reserves its name. Raises ValueError for an unknown id.
    """
    name, number = settings.experiment()
    experiment: Experiment | None
    if number and not name:
        experiment = client.get_experiment(number)
    else:
        experiment = client.get_experiment_by_name(name or EXPERIMENT)
    if number and (not experiment or experiment.experiment_id != number):
        raise ValueError(f"MLFLOW_EXPERIMENT_ID {number} is not the id of the experiment {name!r}")
    is_ours = not experiment or experiment.name == EXPERIMENT
    if not experiment:
        created = client.create_experiment(name or EXPERIMENT, artifact_location=artifacts)
        experiment = client.get_experiment(created)
    tags = {VIEW: _view()}
    if is_ours and NOTE not in experiment.tags:
        tags[NOTE] = files.read_text(Path(__file__).with_name("about.md"))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def by_percent(task: str, metric: str) -> str:
    """Return the metric of a curve: the task's score, with the sparsity in percent as its step."""
    return f"{task} {metric} by percent pruned"


def _view() -> str:
    """Return the saved state of MLflow's runs page: a chart per task, the mean over seeds a curve.

    view.json holds its parts, in the format of saved views in MLflow 3.17; see docs/mlflow.md.
    """
    parts = files.read_json(Path(__file__).with_name("view.json"))
    keys = {task: by_percent(task, kind.metric) for task, kind in TASKS.items()}
    charts = [
        {**parts["chart"], "uuid": task, "metricKey": key, "selectedMetricKeys": [key]}
        for task, key in keys.items()
    ]
    trivial = (f"trivial/{predictor}" for predictor in ("constant", "chance", "unigram"))
    controls = (name for name in CONTROLS if name != "none")
    hidden = ("eval", *trivial, *controls, "Model metrics")
    sections = [parts["curves"], *({"uuid": key, "name": key, "display": False} for key in hidden)]
    state = {
        "compareRunCharts": charts,
        "compareRunSections": [{"isReordered": True, **section} for section in sections],
        **parts["page"],
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
