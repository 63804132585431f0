"""The MLflow runs that the records of a journal describe."""

import base64
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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

from lth_scale.tracking.mlflow.connection import NOTE, all_pages, link
from lth_scale.tracking.mlflow.journal import POINTS, JournalLine, Record
from lth_scale.tracking.mlflow.models import logged_model
from lth_scale.tracking.mlflow.progress import Progress

KEY = "lth_scale.key"  # the tag that identifies a run to us: journal key/byte offset
MOST_POINTS, MOST_PARAMS = 1000, 100  # of one request to MLflow


class RunWriter:
    """Writes records into the runs of one store. `progress` has the ids of the runs.

    A replayed record may be in the store already: what it would create is looked up first, so
    that it is there once.
    """

    def __init__(self, client: MlflowClient, progress: Progress):
        self.client, self.progress, self.runs = client, progress, progress.runs
        self.is_replay = False
        self._created: set[str] = set()  # runs that nobody else can have written to
        self._logged: dict[tuple[str, str], set[int]] = {}  # steps by run and metric
        self._writers = {
            "parent": self._write_parent,
            "reopen": self._reopen,
            "start": self._start,
            "end": self._end,
            "finish": self._finish,
        }

    def write(self, lines: Sequence[JournalLine], is_replay: bool) -> None:
        """Write one record, or points of one run."""
        self.is_replay = is_replay
        record = lines[0].record
        if record["event"] in POINTS:
            self._write_points([line.record for line in lines])
        else:
            self._writers[record["event"]](lines[0])

    def forget(self) -> None:
        """Drop what is known of the store's content, because a request may have been lost."""
        self._created.clear()
        self._logged.clear()

    def find(self, condition: str, experiments: Iterable[str]) -> list[Run]:
        """Return the runs whose key meets a condition."""
        query = f"tags.`{KEY}` {condition}"
        return all_pages(self.client.search_runs, sorted(experiments), query)

    def _get_or_create(self, line: JournalLine, tags: Mapping[str, str]) -> str:
        """Return the id of the run that a line creates."""
        record = line.record
        key = f"{record['key']}/{line.start}"
        runs = self.find(f"= '{key}'", [self.progress.experiment]) if self.is_replay else []
        for run in runs[:1]:
            for name, value in tags.items():
                if run.data.tags.get(name) != value:
                    self.client.set_tag(run.info.run_id, name, value)
            return run.info.run_id
        run = self.client.create_run(
            self.progress.experiment,
            record["time"],
            {**record["tags"], **tags, KEY: key},
            record["name"],
        )
        self._created.add(run.info.run_id)
        return run.info.run_id

    def _delete_orphans(self, key: str) -> None:
        """Delete runs of this journal that were replaced, or created by a lost request."""
        for run in self.find(f"LIKE '{key}/%'", [self.progress.experiment]):
            if run.info.run_id not in self.runs.values():
                self.client.delete_run(run.info.run_id)

    def _log(self, run: str, points: list[Metric]) -> None:
        if self.is_replay:
            points = [point for point in points if point.step not in self._steps(run, point.key)]
        for start in range(0, len(points), MOST_POINTS):
            self.client.log_batch(run, metrics=points[start : start + MOST_POINTS])
        for point in points if self.is_replay else ():
            self._steps(run, point.key).add(point.step)

    def _steps(self, run: str, metric: str) -> set[int]:
        """Return the steps that a run has of a metric; asks the store once."""
        if (run, metric) not in self._logged:
            is_new = run in self._created
            history = [] if is_new else self.client.get_metric_history(run, metric)
            self._logged[run, metric] = {point.step for point in history}
        return self._logged[run, metric]

    def _write_points(self, records: list[Record]) -> None:
        points = []
        for record in records:
            is_loss = record["event"] == "loss"
            values = {"loss": record["loss"]} if is_loss else record["metrics"]
            points += metrics(values, record, record["step"])
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
        inputs = [
            DatasetInput(
                Dataset(
                    data["name"],
                    data["digest"],
                    data["kind"],
                    data["source"],
                    profile=data["profile"],
                ),
                [InputTag("mlflow.data.context", data["split"])],
            )
            for data in record.get("data", ())
        ]
        if inputs:
            self.client.log_inputs(run, inputs)

    def _reopen(self, line: JournalLine) -> None:
        self.client.update_run(self.runs["parent"], status="RUNNING")

    def _start(self, line: JournalLine) -> None:
        stage = line.record["stage"]
        is_restart = stage in self.runs
        tags = {"mlflow.parentRunId": self.runs["parent"]}
        run = self.runs[stage] = self._get_or_create(line, tags)
        self._log_inputs(run, line.record)
        if is_restart:
            self._delete_orphans(line.record["key"])

    def _end(self, line: JournalLine) -> None:
        record = line.record
        parent, child = self.runs["parent"], self.runs[record["stage"]]
        model = self._log_ticket(child, record["ticket"]) if record.get("ticket") else None
        self._log(child, metrics(record["metrics"], record, 0, model))
        if "point" in record:
            point = metrics(record["point"], record, record["percent"])
            self._log(self.runs[record["owner"]], point)
        if starved := record.get("starved"):
            self.client.set_tag(child, "starved", starved)
            self.client.set_tag(parent, "starved", f"{record['stage']}: {starved}")
        self.client.set_terminated(child, end_time=record["time"])
        self._log(parent, metrics(record["curve"], record, record["step"]))

    def _log_ticket(self, run: str, ticket: Mapping[str, str]) -> str:
        """Log a ticket as a model of a round's run, once; return the model's id."""
        model = logged_model(self.client, self.progress.experiment, ticket, run)
        outputs = self.client.get_run(run).outputs
        if not outputs or model not in [output.model_id for output in outputs.model_outputs]:
            self.client.log_outputs(run, [LoggedModelOutput(model, step=0)])
        return model

    def _finish(self, line: JournalLine) -> None:
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


def metrics(
    values: Mapping[str, float], record: Record, step: int, model: str | None = None
) -> list[Metric]:
    """Return the values of a record as points at one step, also of a model if one is given."""
    time = record["time"]
    return [Metric(name, value, time, step, model_id=model) for name, value in values.items()]
