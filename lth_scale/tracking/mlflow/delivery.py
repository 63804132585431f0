"""Making MLflow runs of a journal."""

import base64
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

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

from lth_scale.config.texts import reason
from lth_scale.distributed import compat
from lth_scale.tracking import outbox
from lth_scale.tracking.console import say
from lth_scale.tracking.journal import JournalLine, is_event
from lth_scale.tracking.mlflow import stores, variables
from lth_scale.tracking.mlflow.connection import NOTE, all_pages, connect, link
from lth_scale.tracking.mlflow.models import model_of
from lth_scale.tracking.outbox import Closed, JournalSender

KEY = "lth_scale.key"  # the tag that names a run before MLflow does: journal/offset
BATCH = 1000  # points that MLflow takes at once
POINTS = ("loss", "usage")  # events that are nothing but points
DAMAGED, LEFT_OUT = "damaged", "left out"  # a line, and a run that could not be made
NOTES = {"store", "sent", "experiment"}  # the others are runs


class MlflowDelivery:
    """Makes the runs that a journal describes, in one store. Called by the outbox's thread alone."""

    client: MlflowClient

    def __init__(self, store: str):
        self.store = store
        self.is_connected = self.is_told = False
        self.new: set[str] = set()  # runs that nobody else can have written to
        self.steps: dict[
            tuple[str, str], set[int]
        ] = {}  # those that a run has of a metric, where that is in doubt
        self.left_out: set[str] = set()

    def __call__(self, box: JournalSender, lines: list[JournalLine]) -> Iterator[int]:
        """Send lines in order, neighbouring points of one run together; yields the offsets up to which all is sent.

        Where runs were deleted it yields nothing: `box.notes` goes back to where they begin.
        """
        self.box, self.ids = box, box.notes
        if not self.is_connected and self._connect():
            return
        for what, group in groupby(lines, neighbours):
            same = list(group)
            if what == DAMAGED:
                self._leave_out(same[0], ValueError("the line is damaged"))
                yield same[-1].end
                continue
            try:
                self._send(same)
            except Exception as problem:
                self._doubt(same)
                self.is_connected = False
                if stores.may_pass(problem):
                    raise
                if self._connect():
                    return
                yield from self._send_each(same)
            yield same[-1].end

    def _send(self, lines: list[JournalLine]) -> None:
        self.doubtful = lines[0].start < self.box.doubt
        event, stage = lines[0].record["event"], lines[0].record.get("stage", "")
        if event != "start" and self.ids.get(stage) == LEFT_OUT:
            raise ValueError("its run could not be made")
        getattr(self, "_points" if event in POINTS else f"_{event}")(lines)

    def _send_each(self, lines: list[JournalLine]) -> Iterator[int]:
        """Send lines one by one, after some were refused: what is refused again is left out, and said."""
        for line in lines:
            try:
                self._send([line])
            except Exception as problem:
                self._doubt([line])
                if (
                    line.record["event"] == "parent"
                    or stores.may_pass(problem)
                    or stores.remedy(problem, self.store)
                ):
                    self.is_connected = False
                    raise self._closed(problem) from problem
                self._leave_out(line, problem)
            yield line.end

    def _leave_out(self, line: JournalLine, problem: Exception) -> None:
        event = line.record["event"] if is_event(line.record) else DAMAGED
        if event == "start":
            self.ids[line.record["stage"]] = LEFT_OUT
        if event not in self.left_out:
            where = f"the record at byte {line.start} of {self.box.path}"
            say(f"MLflow: {where} is left out, as are others like it: {reason(problem)}")
        self.left_out.add(event)

    def _doubt(self, lines: list[JournalLine]) -> None:
        """Ask the store anew what it has: of these lines some may have got there."""
        self.box.doubt = max(self.box.doubt, lines[-1].end)
        self.new.clear()
        self.steps.clear()

    def _connect(self) -> bool:
        """Reach the store; true where runs are lost, and the notes go back to where they begin. Raises Closed."""
        try:
            self.client, experiment = connect(self.store)
            self.is_connected = True
            return self._go_back(experiment)
        except Exception as problem:
            self.is_connected = False
            raise self._closed(problem) from problem

    def _closed(self, problem: Exception) -> Exception:
        """The problem; where waiting does not help, as what does."""
        if stores.may_pass(problem):
            return problem
        usual = (
            f"{reason(problem).rstrip('.')}. Correct MLFLOW_TRACKING_URI, or give --report_to none"
        )
        return Closed(stores.remedy(problem, self.store) or usual)

    def _go_back(self, experiment: str) -> bool:
        starts, sent = self._starts(), self.ids["sent"]
        places = {
            experiment,
            self.ids.get("experiment", experiment),
        }  # it may have got another name meanwhile
        runs = self._runs(f"LIKE '{self._key()}/%'", places) if sent else []
        there = {LEFT_OUT: experiment, **{run.info.run_id: run.info.experiment_id for run in runs}}
        self.ids["experiment"] = there.get(self.ids.get("parent", LEFT_OUT), experiment)
        self._tell_experiment(experiment)
        lost = {name for name in starts if starts[name] < sent and self.ids.get(name) not in there}
        lost = {name for name in starts if starts[name] < sent} if "parent" in lost else lost
        for name in {*self.ids} - NOTES:
            if name in lost or name not in starts:
                del self.ids[name]
        self.box.doubt = max(self.box.doubt, sent)
        self.ids["sent"] = min([starts[name] for name in lost], default=sent)
        return bool(lost)

    def _tell_experiment(self, asked: str) -> None:
        """Say once that runs stay in the experiment in which they began, where a variable names another."""
        if self.ids["experiment"] != asked and not self.is_told and variables.is_given():
            began = self.client.get_experiment(self.ids["experiment"]).name
            say(
                f"MLflow: the runs of {self.box.path} began in the experiment {began!r} and go on there"
            )
            self.is_told = True

    def _starts(self) -> dict[str, int]:
        """Where the line is that makes the parent's run, and that of each stage: the last, where it began anew."""
        found = {}
        for line in self.box.read(0):
            if is_event(line.record) and line.record["event"] in ("parent", "start"):
                found[line.record.get("stage", "parent")] = line.start
        return found

    def _key(self) -> str:
        records = (line.record for line in self.box.read(0) if is_event(line.record))
        return next((record["key"] for record in records if record["event"] == "parent"), "")

    def _run(self, line: JournalLine, tags: Mapping[str, str]) -> str:
        """The run that a line names: a new one, unless it may be there and is."""
        record = line.record
        key = f"{record['key']}/{line.start}"
        found = self._runs(f"= '{key}'", {self.ids["experiment"]}) if self.doubtful else []
        for run in found[:1]:
            for name, value in tags.items():
                if run.data.tags.get(name) != value:
                    self.client.set_tag(run.info.run_id, name, value)
            return run.info.run_id
        tags = {**record["tags"], **tags, KEY: key}
        made = self.client.create_run(self.ids["experiment"], record["time"], tags, record["name"])
        self.new.add(made.info.run_id)
        return made.info.run_id

    def _runs(self, condition: str, experiments: set[str]) -> list[Run]:
        return all_pages(self.client.search_runs, sorted(experiments), f"tags.`{KEY}` {condition}")

    def _drop_others(self, key: str) -> None:
        """Delete runs of this journal that no id is kept of: replaced, or made by a request thought lost."""
        for run in self._runs(f"LIKE '{key}/%'", {self.ids["experiment"]}):
            if run.info.run_id not in self.ids.values():
                self.client.delete_run(run.info.run_id)

    def _log(
        self, run: str, values: Mapping[str, float], step: int, time: int, model: str | None = None
    ) -> None:
        self._log_points(
            run, [Metric(name, value, time, step, model_id=model) for name, value in values.items()]
        )

    def _log_points(self, run: str, points: list[Metric]) -> None:
        if self.doubtful:
            points = [point for point in points if point.step not in self._steps(run, point.key)]
        for start in range(0, len(points), BATCH):
            self.client.log_batch(run, metrics=points[start : start + BATCH])
        for point in points if self.doubtful else ():
            self._steps(run, point.key).add(point.step)

    def _steps(self, run: str, name: str) -> set[int]:
        """The steps of a metric that its run has, asked once."""
        if (run, name) not in self.steps:
            history = [] if run in self.new else self.client.get_metric_history(run, name)
            self.steps[run, name] = {point.step for point in history}
        return self.steps[run, name]

    def _parent(self, lines: list[JournalLine]) -> None:
        self.ids["parent"] = self._run(lines[0], {})
        params = [Param(name, value) for name, value in lines[0].record["params"].items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.ids["parent"], params=params[start : start + 100])
        self._log_data(self.ids["parent"], lines[0].record)

    def _log_data(self, run: str, record: Mapping[str, Any]) -> None:
        """The data sets of a record as inputs of its run, once."""
        known = self.client.get_run(run).inputs if self.doubtful else None
        if known and known.dataset_inputs:
            return
        inputs = []
        for each in record.get("data", ()):
            what = Dataset(
                each["name"], each["digest"], each["kind"], each["source"], None, each["profile"]
            )
            inputs.append(DatasetInput(what, [InputTag("mlflow.data.context", each["split"])]))
        if inputs:
            self.client.log_inputs(run, inputs)

    def _reopen(self, lines: list[JournalLine]) -> None:
        self.client.update_run(self.ids["parent"], status="RUNNING")

    def _start(self, lines: list[JournalLine]) -> None:
        stage, before = lines[0].record["stage"], dict(self.ids)
        self.ids[stage] = self._run(lines[0], {"mlflow.parentRunId": self.ids["parent"]})
        self._log_data(self.ids[stage], lines[0].record)
        if stage in before:
            self._drop_others(lines[0].record["key"])

    def _points(self, lines: list[JournalLine]) -> None:
        points = []
        for record in (line.record for line in lines):
            values = {"loss": record["loss"]} if record["event"] == "loss" else record["metrics"]
            points += [
                Metric(name, value, record["time"], record["step"])
                for name, value in values.items()
            ]
        self._log_points(self.ids[lines[0].record["stage"]], points)

    def _end(self, lines: list[JournalLine]) -> None:
        record = lines[0].record
        child, ticket, model = self.ids[record["stage"]], record.get("ticket"), None
        if ticket:
            model = model_of(self.client, self.ids["experiment"], ticket, child)
            outputs = self.client.get_run(child).outputs
            if not outputs or model not in [output.model_id for output in outputs.model_outputs]:
                self.client.log_outputs(child, [LoggedModelOutput(model, step=0)])
        self._log(child, record["metrics"], 0, record["time"], model)
        if "point" in record:
            self._log(self.ids[record["owner"]], record["point"], record["percent"], record["time"])
        if words := record.get("starved"):
            self.client.set_tag(child, "starved", words)
            self.client.set_tag(self.ids["parent"], "starved", f"{record['stage']}: {words}")
        self.client.set_terminated(child, end_time=record["time"])
        self._log(self.ids["parent"], record["curve"], record["step"], record["time"])

    def _finish(self, lines: list[JournalLine]) -> None:
        record, parent = lines[0].record, self.ids["parent"]
        with tempfile.TemporaryDirectory() as folder:
            for name, coded in record["pictures"].items():
                (Path(folder) / name).write_bytes(base64.b64decode(coded))
            self.client.log_artifacts(parent, folder, "figures")
        figures = [
            f"![{Path(name).stem}]({link(parent, f'figures/{name}')})"
            for name in record["pictures"]
        ]
        self.client.log_batch(parent, tags=[RunTag(NOTE, "\n\n".join([record["table"], *figures]))])
        self._drop_others(record["key"])
        self.client.set_terminated(parent, end_time=record["time"])


def start_sending(path: Path, store: str) -> JournalSender:
    """The journal at `path`, with a thread that sends it to an MLflow store."""
    if not store.startswith("http"):
        compat.import_store()
    return outbox.start(path, store, MlflowDelivery(store))


def neighbours(line: JournalLine) -> str | int:
    """The same for lines that are dealt with together, where they follow each other: the points of one run."""
    if not is_event(line.record):
        return DAMAGED
    return line.record["stage"] if line.record["event"] in POINTS else line.start
