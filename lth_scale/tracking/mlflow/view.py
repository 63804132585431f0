"""The saved view of MLflow's runs page."""

import base64
import json
import zlib

from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS


def by_percent(task: str) -> str:
    """The metric that makes a curve: a task's score, whose step is the sparsity in percent. It titles the chart."""
    return f"{task} {TASKS[task].metric} by percent pruned"


def view() -> str:
    """The state of MLflow's page of runs that shows the curves: a chart a task, the seeds of a curve as their mean.

    Its shape is that of MLflow 3.17's own saved views; see docs/mlflow.md.
    """
    same = {
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
    charts = []
    for task in TASKS:
        key = by_percent(task)
        charts.append({**same, "uuid": task, "metricKey": key, "selectedMetricKeys": [key]})
    sections = [
        {
            "uuid": "curves",
            "name": "Step = % of weights pruned",
            "display": True,
            "columns": 1,
            "cardHeight": 400,
        }
    ]
    sections += [
        {"uuid": name, "name": name, "display": False}
        for name in ("eval", *(name for name in CONTROLS if name != "none"), "Model metrics")
    ]
    state = {
        "compareRunCharts": charts,
        "compareRunSections": [{"isReordered": True, **each} for each in sections],
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
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
