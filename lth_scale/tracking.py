"""MLflow: a parent run for the command, a child run for each round. The only caller of MLflow.

`Tracker` writes down what happens, `Delivery` makes MLflow's runs of it. A point keeps its time, a run its key: what
may have been sent before is looked up, so that it is there once.
"""

import base64
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again, and knows what is in doubt
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints passwords, and into the progress bars

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.db import utils as db_utils

from lth_scale import files, outbox
from lth_scale.arguments import Training, Transfer, source_name
from lth_scale.outbox import Line, Outbox
from lth_scale.record import Record, Stage

EXPERIMENT = "lth_scale"
KEY = "lth_scale.key"  # the tag that names a run before MLflow does: journal/offset


class Tracker:
    """Writes the runs of one search into the journal of its directory; nothing that is there already."""

    def __init__(self, args: Training, record: Record, directory: Path | None = None):
        self.args, self.key, self.stage = args, "", ""
        self.steps: dict[str, int] = {}  # the last one written down, by stage
        self.ended: set[str] = set()
        self.on_curve: set[str] = set()
        self.tags = {"task": args.task, "base_model": args.model_name_or_path, "seed": str(args.seed)}
        if args.note:
            self.tags["note"] = args.note
        self.box = start_sending((directory or record.directory) / "mlflow.jsonl", record.mlflow_store())
        for line in self.box.read(0):
            self._remember(**line.record)
        if self.key:
            self._write("reopen")
        else:
            self._write_parent()

    def _write_parent(self) -> None:
        args, control = self.args, "none"
        what = [args.task, Path(args.model_name_or_path).name]
        if isinstance(args, Transfer):
            control = args.control
            what += [f"from {source_name(args.ticket)}", *([] if control == "none" else [control])]
        name = args.run_name or " · ".join([*what, f"seed {args.seed}", *(["quick look"] if args.note else [])])
        params = {key: str(value)[:6000] for key, value in args.as_dict().items()}
        self.key = uuid.uuid4().hex
        self._write("parent", key=self.key, name=name, tags={**self.tags, "control": control}, params=params)

    def _write(self, event: str, **values: Any) -> None:
        record = {"event": event, "time": int(time.time() * 1000), **values}
        self._remember(**record)
        self.box.append(record)

    def _remember(self, event: str, key: str = "", stage: str = "", step: int = 0, **_: Any) -> None:
        if event == "parent":
            self.key = key
        elif event == "start":
            self.steps[stage] = -1
            self.ended.discard(stage)
        elif event == "loss":
            self.steps[stage] = step
        elif event == "end":
            self.ended.add(stage)
            self.on_curve.add(stage)

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool = False) -> None:
        """Open the child run of a stage. Unless that was `resumed`, one left unfinished is made anew."""
        self.stage = stage.name
        if resumed and stage.name in self.steps:
            return
        tags = {**self.tags, "control": stage.control, "round": str(stage.number)}
        name = f"{stage.name} · {100 * sparsity:.4g} %"
        self._write("start", key=self.key, stage=stage.name, name=name, tags=tags)

    def step(self, step: int, loss: float | None) -> None:
        """Log the training loss, where there is one."""
        if loss is not None and step > self.steps[self.stage]:
            self._write("loss", stage=self.stage, step=step, loss=loss)

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """Log a finished stage on its run, and its place on the curve over rounds on the parent's."""
        if stage.name in self.ended:
            return
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        scores = {f"eval/{name}": float(value) for name, value in row["eval"].items()}
        curve = {**scores, "sparsity": float(row["sparsity"])}
        if stage.room.startswith("controls/"):
            curve = {f"{stage.control}/{name}": float(value) for name, value in row["eval"].items()}
        if stage.name in self.on_curve:  # it was trained before, and its run made anew since; the parent's was not
            curve = {}
        self._write("end", stage=stage.name, step=stage.number, metrics={**numbers, **scores}, curve=curve)

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        coded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        self._write("finish", key=self.key, pictures=coded, table=table)


class Delivery:
    """Makes the runs that a journal describes, in one store. Called by the outbox's thread alone."""

    client: MlflowClient

    def __init__(self, store: str):
        self.store = store

    def __call__(self, box: Outbox, lines: list[Line]) -> Iterator[int]:
        """Send lines in order, neighbouring losses of one run together; yields the offsets up to which all is sent."""
        self.ids = box.notes
        if "client" not in vars(self):
            self.client, self.ids["experiment"] = connect(self.store)
        for _, group in groupby(lines, lambda line: line.record["stage"] if "loss" in line.record else line.start):
            same = list(group)
            self.doubtful = same[0].start < box.doubt
            getattr(self, f"_{same[0].record['event']}")(same)
            yield same[-1].end

    def _run(self, line: Line, tags: Mapping[str, str]) -> str:
        """The run that a line names: a new one, unless it may be there and is."""
        record = line.record
        key = f"{record['key']}/{line.start}"
        found = self._search(f"= '{key}'") if self.doubtful else []
        tags = {**record["tags"], **tags, KEY: key}
        return found[0] if found else self.client.create_run(
            self.ids["experiment"], record["time"], tags, record["name"]
        ).info.run_id  # fmt: skip

    def _search(self, condition: str) -> list[str]:
        runs = self.client.search_runs([self.ids["experiment"]], f"tags.`{KEY}` {condition}")
        return [run.info.run_id for run in runs]

    def _drop_others(self, key: str) -> None:
        """Delete runs of this journal that no id is kept of: replaced, or made by a request thought lost."""
        for run in self._search(f"LIKE '{key}/%'"):
            if run not in self.ids.values():
                self.client.delete_run(run)

    def _log(self, run: str, values: Mapping[str, float], step: int, time: int) -> None:
        self._log_points(run, [Metric(name, value, time, step) for name, value in values.items()])

    def _log_points(self, run: str, points: list[Metric]) -> None:
        if self.doubtful:
            names = {point.key for point in points}
            there = {(name, old.step) for name in names for old in self.client.get_metric_history(run, name)}
            points = [point for point in points if (point.key, point.step) not in there]
        if points:
            self.client.log_batch(run, metrics=points)

    def _parent(self, lines: list[Line]) -> None:
        self.ids["parent"] = self._run(lines[0], {})
        params = [Param(name, value) for name, value in lines[0].record["params"].items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.ids["parent"], params=params[start : start + 100])

    def _reopen(self, lines: list[Line]) -> None:
        self.client.update_run(self.ids["parent"], status="RUNNING")

    def _start(self, lines: list[Line]) -> None:
        stage, before = lines[0].record["stage"], dict(self.ids)
        self.ids[stage] = self._run(lines[0], {"mlflow.parentRunId": self.ids["parent"]})
        if stage in before:
            self._drop_others(lines[0].record["key"])

    def _loss(self, lines: list[Line]) -> None:
        records = [line.record for line in lines]
        points = [Metric("loss", record["loss"], record["time"], record["step"]) for record in records]
        self._log_points(self.ids[records[0]["stage"]], points)

    def _end(self, lines: list[Line]) -> None:
        record = lines[0].record
        child = self.ids[record["stage"]]
        self._log(child, record["metrics"], 0, record["time"])
        self.client.set_terminated(child, end_time=record["time"])
        self._log(self.ids["parent"], record["curve"], record["step"], record["time"])

    def _finish(self, lines: list[Line]) -> None:
        record, parent = lines[0].record, self.ids["parent"]
        with tempfile.TemporaryDirectory() as folder:
            for name, coded in record["pictures"].items():
                (Path(folder) / name).write_bytes(base64.b64decode(coded))
            self.client.log_artifacts(parent, folder, "figures")
        self.client.log_batch(parent, tags=[RunTag("mlflow.note.content", record["table"])])
        self._drop_others(record["key"])
        self.client.set_terminated(parent, end_time=record["time"])


def start_sending(path: Path, store: str) -> Outbox:
    """The journal at `path`, with a thread that sends it to an MLflow store."""
    if not store.startswith("http"):  # here, not in the thread: a fork in the middle of an import can hang
        import mlflow.store.tracking.sqlalchemy_workspace_store  # noqa: F401
    return outbox.start(path, store, Delivery(store))


def connect(store: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment there. A local store is made by one process alone."""
    local = Path(store.removeprefix("sqlite:///")).resolve() if store.startswith("sqlite:///") else None
    db_utils.MAX_RETRY_COUNT = 1  # no attempts of its own here either, each with a line of log
    with files.exclusive(local) if local else nullcontext():
        client = MlflowClient(tracking_uri=store)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found:
            return client, found.experiment_id
        artifacts = (local.parent / "mlartifacts").as_uri() if local else None  # a server knows where its own go
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def log_report(
    store: str, name: str, paths: Sequence[Path], kind: str = "study", metrics: Mapping[str, float] | None = None
) -> None:
    """Keep a report's files as artifacts of the run `report · NAME`, the same one every time, and its numbers there."""
    client, experiment = connect(store)
    title = f"report · {name}"
    runs = client.search_runs([experiment], f"tags.report = '{kind}'")
    same = [run.info.run_id for run in runs if run.info.run_name == title]
    run = same[0] if same else client.create_run(experiment, tags={"report": kind}, run_name=title).info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
    for start in range(0, len(points), 1000):
        client.log_batch(run, metrics=points[start : start + 1000])
    client.set_terminated(run)
