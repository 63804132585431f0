"""The MLflow runs of searches, transfers and reports."""

import base64
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)

from lth_scale.config.markdown import clean
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable, reason
from lth_scale.tracking.mlflow import settings
from lth_scale.tracking.mlflow.connection import NOTE, connect, link
from lth_scale.tracking.mlflow.journal import POINTS, JournalLine, Progress, Record
from lth_scale.tracking.mlflow.models import Registration, all_pages, logged_model, register

KEY = "lth_scale.key"  # the tag that identifies a run to us: journal key/byte offset
MOST_POINTS, MOST_PARAMS = 1000, 100  # of one request to MLflow
NOTE_LENGTH = 7500  # of the 8,000 characters that a tag may have


class RunWriter:
    """Writes records into the runs of one store. `progress` has the ids of the runs.

    A replayed record may be in the store already: what it would create is looked up first, so
    that it is created once.
    """

    def __init__(self, client: MlflowClient, progress: Progress):
        self.client, self.progress, self.runs = client, progress, progress.runs
        self.is_replay = False
        self._created: set[str] = set()  # runs that nobody else can have written to
        self._logged: dict[tuple[str, str], set[int]] = {}  # steps by run and metric
        self._writers = {
            "parent": self._write_parent,
            "start": self._write_start,
            "end": self._write_end,
            "finish": self._write_finish,
        }

    def write(self, lines: Sequence[JournalLine], is_replay: bool) -> None:
        """Write one record, or points of one run."""
        self.is_replay = is_replay
        event = lines[0].record["event"]
        if event in POINTS:
            self._write_points([line.record for line in lines])
        elif event == "reopen":
            self.client.update_run(self.runs["parent"], status="RUNNING")
        else:
            self._writers[event](lines[0])

    def forget(self) -> None:
        """Forget what the store contains, because a request may have been lost."""
        self._created.clear()
        self._logged.clear()

    def find(self, condition: str, experiments: Iterable[str]) -> list[Run]:
        """Return the runs whose key meets a condition."""
        query = f"tags.`{KEY}` {condition}"
        return all_pages(self.client.search_runs, sorted(experiments), query)

    def _get_or_create(self, line: JournalLine, tags: Mapping[str, str]) -> str:
        """Return the id of the run that a line creates."""
        record, experiment = line.record, self.progress.experiment
        key = f"{record['key']}/{line.start}"
        runs = self.find(f"= '{key}'", [experiment]) if self.is_replay else []
        if not runs:
            all_tags = {**record["tags"], **tags, KEY: key}
            run = self.client.create_run(experiment, record["time"], all_tags, record["name"])
            self._created.add(run.info.run_id)
            return run.info.run_id
        for name, value in tags.items():
            if runs[0].data.tags.get(name) != value:
                self.client.set_tag(runs[0].info.run_id, name, value)
        return runs[0].info.run_id

    def _delete_orphans(self, key: str) -> None:
        """Delete runs of this journal that were replaced, or created by a lost request."""
        for run in self.find(f"LIKE '{key}/%'", [self.progress.experiment]):
            if run.info.run_id not in self.runs.values():
                self.client.delete_run(run.info.run_id)

    def _log(self, run: str, points: list[Metric]) -> None:
        if self.is_replay:
            points = [point for point in points if point.step not in self._steps(run, point.key)]
        _log_metrics(self.client, run, points)
        if self.is_replay:
            for point in points:
                self._steps(run, point.key).add(point.step)

    def _steps(self, run: str, metric: str) -> set[int]:
        """Return the steps of a metric that a run has; asks the store once."""
        if (run, metric) not in self._logged:
            is_new = run in self._created
            history = [] if is_new else self.client.get_metric_history(run, metric)
            self._logged[run, metric] = {point.step for point in history}
        return self._logged[run, metric]

    def _write_points(self, records: list[Record]) -> None:
        points = []
        for record in records:
            values = {"loss": record["loss"]} if record["event"] == "loss" else record["metrics"]
            points += _points(values, record, record["step"])
        self._log(self.runs[records[0]["stage"]], points)

    def _write_parent(self, line: JournalLine) -> None:
        run = self.runs["parent"] = self._get_or_create(line, {})
        params = [Param(name, value) for name, value in line.record["params"].items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run, params=params[start : start + MOST_PARAMS])
        self._log_inputs(run, line.record)

    def _log_inputs(self, run: str, record: Record) -> None:
        """Log the data sets of a record as inputs of its run, once."""
        known = self.client.get_run(run).inputs if self.is_replay else None
        if known and known.dataset_inputs:
            return
        inputs = []
        for data in record.get("data", ()):
            name, digest, kind, source = (data[key] for key in ("name", "digest", "kind", "source"))
            dataset = Dataset(name, digest, kind, source, profile=data["profile"])
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", data["split"])]))
        if inputs:
            self.client.log_inputs(run, inputs)

    def _write_start(self, line: JournalLine) -> None:
        stage = line.record["stage"]
        is_restart = stage in self.runs
        tags = {"mlflow.parentRunId": self.runs["parent"]}
        run = self.runs[stage] = self._get_or_create(line, tags)
        self._log_inputs(run, line.record)
        if is_restart:
            self._delete_orphans(line.record["key"])

    def _write_end(self, line: JournalLine) -> None:
        record = line.record
        parent, child = self.runs["parent"], self.runs[record["stage"]]
        model = None
        if ticket := record.get("ticket"):
            model = logged_model(self.client, self.progress.experiment, ticket, child)
            outputs = self.client.get_run(child).outputs
            if not outputs or model not in [output.model_id for output in outputs.model_outputs]:
                self.client.log_outputs(child, [LoggedModelOutput(model, step=0)])
        self._log(child, _points(record["metrics"], record, 0, model))
        if "point" in record:
            point = _points(record["point"], record, record["percent"])
            self._log(self.runs[record["owner"]], point)
        if starved := record.get("starved"):
            self.client.set_tag(child, "starved", starved)
            self.client.set_tag(parent, "starved", f"{record['stage']}: {starved}")
        self.client.set_terminated(child, end_time=record["time"])
        self._log(parent, _points(record["curve"], record, record["step"]))

    def _write_finish(self, line: JournalLine) -> None:
        record, parent = line.record, self.runs["parent"]
        with tempfile.TemporaryDirectory() as folder:
            for name, picture in record["pictures"].items():
                Path(folder, name).write_bytes(base64.b64decode(picture))
            self.client.log_artifacts(parent, folder, "figures")
        figures = [
            f"![{Path(name).stem}]({link(parent, f'figures/{name}')})"
            for name in record["pictures"]
        ]
        note = "\n\n".join([record["table"], *figures])
        self.client.log_batch(parent, tags=[RunTag(NOTE, note)])
        self._delete_orphans(record["key"])
        self.client.set_terminated(parent, end_time=record["time"])


def _points(
    values: Mapping[str, float], record: Record, step: int, model: str | None = None
) -> list[Metric]:
    time = record["time"]
    return [Metric(name, value, time, step, model_id=model) for name, value in values.items()]


def _log_metrics(client: MlflowClient, run: str, points: Sequence[Metric]) -> None:
    for start in range(0, len(points), MOST_POINTS):
        client.log_batch(run, metrics=points[start : start + MOST_POINTS])


def try_to_log(local: str, log: Callable[[str], None]) -> None:
    """Call `log` with MLFLOW_TRACKING_URI or the store `local`, and print how it went.

    Nothing is raised: what is logged is already written.
    """
    store = os.environ.get("MLFLOW_TRACKING_URI") or local
    try:
        log(store)
        print(printable(f"MLflow   logged to {without_secrets(store)}"))
    except Exception as problem:  # MLflow raises many kinds
        print(printable(f"MLflow   not logged to {without_secrets(store)}: {reason(problem)}"))


def log_report(
    store: str,
    name: str,
    paths: Sequence[Path],
    kind: str = "study",
    metrics: Mapping[str, float] | None = None,
    registrations: Sequence[Registration] = (),
) -> None:
    """Log a report's files and metrics to the run `report · NAME`, which is reused.

    paths: the first Markdown file becomes the run's description. kind: `study` or `speed`.
    registrations: for the model registry.
    """
    client, experiment = connect(store)
    name = clean(without_secrets(name))
    title = f"report · {name}"
    known = client.search_runs([experiment], f"tags.report = '{kind}'")
    runs = [run for run in known if run.info.run_name == title]
    if not runs:
        tags = settings.tags() | {"report": kind}
        runs = [client.create_run(experiment, tags=tags, run_name=title)]
    run = runs[0].info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
    for page in [path for path in paths if path.suffix == ".md"][:1]:
        client.set_tag(run, NOTE, _as_note(page.read_text(), run))
    client.set_tag(run, "curve", title)
    for registration in registrations:
        register(client, experiment, name, registration)
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
    _log_metrics(client, run, points)
    client.set_terminated(run)


def _as_note(text: str, run: str) -> str:
    """Return a report as the note of its run: as many sections as MLflow stores.

    Pictures are linked to the run's artifacts, and folded details are left out.
    """
    text = re.sub(r"(?ms)^<details>.*?^</details>\n+", "", text)
    text = re.sub(r"(?<!\\)\]\((?!http|#)([^)]+)\)", lambda path: f"]({link(run, path[1])})", text)
    note, rest = "", "\n\n… the rest is in report.html, under Artifacts."
    for section in re.split(r"(?m)^(?=#{1,3} )", text):
        if len(note) + len(section) + len(rest) > NOTE_LENGTH:
            return note + rest
        note += section
    return note
