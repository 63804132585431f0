"""The saved view of MLflow's runs page: curves of score against sparsity."""

import base64
import json
import zlib

from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS

CHART = {
    "type": "LINE",
    "metricSectionId": "curves",
    "runsCountToCompare": 100,
    "deleted": False,
    "isGenerated": False,
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "displayPoints": True,
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": False,
    "useGlobalLineSmoothing": False,
}
CURVES = {
    "uuid": "curves",
    "name": "Step = % of weights pruned",
    "display": True,
    "columns": 1,
    "cardHeight": 400,
}
PAGE = {
    "isAccordionReordered": True,
    "hideEmptyCharts": True,
    "runsHiddenMode": "SHOW_ALL",
    "groupBy": {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "curve"}],
    },
    "useGroupedValuesInCharts": True,
    "selectedColumns": [f"tags.`{tag}`" for tag in ("task", "control", "seed")],
    "searchFilter": "tags.`curve` LIKE '%'",
    "orderByKey": "attributes.start_time",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
}


def by_percent(task: str) -> str:
    """Return the metric of a curve: the task's score, with the sparsity in percent as its step."""
    return f"{task} {TASKS[task].metric} by percent pruned"


def view() -> str:
    """Return the state of the runs page: a chart per task, the mean over seeds of each curve.

    The format is that of saved views in MLflow 3.17; see docs/mlflow.md.
    """
    keys = {task: by_percent(task) for task in TASKS}
    charts = [
        {**CHART, "uuid": task, "metricKey": key, "selectedMetricKeys": [key]}
        for task, key in keys.items()
    ]
    hidden = ("eval", *(name for name in CONTROLS if name != "none"), "Model metrics")
    sections = [CURVES, *({"uuid": name, "name": name, "display": False} for name in hidden)]
    state = {
        "compareRunCharts": charts,
        "compareRunSections": [{"isReordered": True, **section} for section in sections],
        **PAGE,
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
