"""The saved view of MLflow's runs page: curves of score against sparsity."""

import base64
import json
import zlib
from pathlib import Path

from lth_scale.config import files
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS


def by_percent(task: str) -> str:
    """Return the metric of a curve: the task's score, with the sparsity in percent as its step."""
    return f"{task} {TASKS[task].metric} by percent pruned"


def view() -> str:
    """Return the state of the runs page: a chart per task, the mean over seeds of each curve.

    view.json holds its parts, in the format of saved views in MLflow 3.17; see docs/mlflow.md.
    """
    parts = files.read_json(Path(__file__).with_name("view.json"))
    keys = {task: by_percent(task) for task in TASKS}
    charts = [
        {**parts["chart"], "uuid": task, "metricKey": key, "selectedMetricKeys": [key]}
        for task, key in keys.items()
    ]
    hidden = ("eval", *(name for name in CONTROLS if name != "none"), "Model metrics")
    sections = [parts["curves"], *({"uuid": key, "name": key, "display": False} for key in hidden)]
    state = {
        "compareRunCharts": charts,
        "compareRunSections": [{"isReordered": True, **section} for section in sections],
        **parts["page"],
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
