"""MLflow: a parent run for the command, a child run for each round, a page of curves. The only caller of MLflow.

`Tracker` writes down what happens, `Delivery` makes MLflow's runs of it. A point keeps its time, a run its key: what
may have been sent before is looked up, so that it is there once; what was deleted is sent again.
"""

import base64
import hashlib
import json
import logging
import os
import re
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again, and knows what is in doubt
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints passwords, and into the progress bars

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.store.db import utils as db_utils
from safetensors import safe_open

from lth_scale import experiment as variables
from lth_scale import files, outbox
from lth_scale import store as stores
from lth_scale.arguments import CONTROLS, COSMETIC, DATASETS, TASKS, Arguments, Training, Transfer, reason, source_name
from lth_scale.journal import Line, is_event
from lth_scale.outbox import Closed, Outbox
from lth_scale.page import clean, literal
from lth_scale.record import Record, Stage, starved_in
from lth_scale.redaction import redacted, without_secrets
from lth_scale.terminal import say

if TYPE_CHECKING:
    from lth_scale.tasks import Task

KEY = "lth_scale.key"  # the tag that names a run before MLflow does: journal/offset
NOTE = "mlflow.note.content"  # Markdown that MLflow shows with a run or an experiment
VIEW = "mlflow.sharedViewState.curves"
ABOUT = """**Score against sparsity. Each curve is a mean over seeds; its step is the percentage of weights pruned.**

- `IMP`: the subnetwork that iterative magnitude pruning found, trained from the pre-trained weights; at 0 % the full \
network. `IMP of mlm`: the ticket of that other task.
- `random_mask`, `reinit`, `one_shot` and so on: controls, a mask or weights that were not found. `dense`: no mask.

A curve's name goes on with its task and its model, and ends in a digest of the flags: only runs that differ in \
nothing but the seed share one. Open a run for its table and figure, its data and its rounds; *Models* for the \
tickets; *Model registry* for those that match the full network, under the rule that the alias names."""
BATCH = 1000  # points that MLflow takes at once
POINTS = ("loss", "usage")  # events that are nothing but points
DAMAGED, LEFT_OUT = "damaged", "left out"  # a line, and a run that could not be made
NOTES = {"store", "sent", "experiment"}  # the others are runs
NOTE_LENGTH = 7500  # of the 8,000 characters that a tag may have
METHOD = ("scope", "pattern", "score", "rewind", "rewind_step", "distill", "early_bird")
SCORES = dict.fromkeys(TASKS, "accuracy") | {"stsb": "pearson", "cola": "matthews_correlation", "squad": "f1"}


class Tracker:
    """Writes the runs of one search into the journal of its directory; nothing that is there already."""

    def __init__(self, args: Training, record: Record, directory: Path | None = None, task: "Task | None" = None):
        self.args, self.record, self.key, self.stage = args, record, "", ""
        self.data = redacted(describe_data(task, args)) if task else []
        self.steps: dict[str, int] = {}  # the last one written down, by stage
        self.used: dict[str, int] = {}  # the same, of system metrics
        self.ended: set[str] = set()
        self.on_curve: set[str] = set()
        self.tags = variables.tags() | {
            "task": args.task,
            "base_model": redacted(args.to_keep()["model_name_or_path"]),
            "seed": str(args.seed),
        }
        if args.note:
            self.tags["note"] = args.note
        store, inside = record.mlflow_store(), record.directory.resolve() / "mlflow.db"
        if store == stores.address(inside) and not inside.exists():
            say(f"MLflow: the records go to {inside}: its parent directory cannot be written")
        self.box = start_sending((directory or record.directory) / "mlflow.jsonl", store)
        for line in self.box.read(0):
            if is_event(line.record):
                self._remember(**line.record)
        if self.key:
            self._write("reopen")
        else:
            self._write_parent()

    def _write_parent(self) -> None:
        args, control = self.args, "none"
        what = [args.task, f"seed {args.seed}"]
        if isinstance(args, Transfer):
            control = args.control
            sparsity = float(header(Path(args.ticket))["sparsity"]) if args.ticket else args.target_sparsity or 0.0
            what += [
                f"{100 * sparsity:.4g} %",
                *([] if control == "none" else [control]),
                f"from {source_name(args.ticket)}",
            ]
        what += [Path(args.model_name_or_path).name, *(["quick look"] if args.preset == "quick" else [])]
        name = without_secrets(args.run_name or " · ".join(what))
        params = {key: str(value)[:6000] for key, value in redacted(args.to_keep()).items()}
        self.key = uuid.uuid4().hex
        tags = {**self.tags, "control": control, "curve": curve_of(args, control)}
        self._write("parent", key=self.key, name=name, tags=tags, params=params, data=self.data)

    def _write(self, event: str, **values: Any) -> None:
        record = {"event": event, "time": int(time.time() * 1000), **values}
        self._remember(**record)
        self.box.append(record)

    def _remember(self, event: str, key: str = "", stage: str = "", step: int = 0, **_: Any) -> None:
        if event == "parent":
            self.key = key
        elif event == "start":
            self.steps[stage] = self.used[stage] = -1
            self.ended.discard(stage)
        elif event in ("loss", "usage"):
            (self.steps if event == "loss" else self.used)[stage] = step
        elif event == "end":
            self.ended.add(stage)
            self.on_curve.add(stage)

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool = False) -> None:
        """Open the child run of a stage. Unless that was `resumed`, one left unfinished is made anew."""
        self.stage = stage.name
        if resumed and stage.name in self.steps:
            return
        tags = {**self.tags, "control": stage.control, "round": str(stage.number)}
        if stage.room.startswith("controls/"):  # a curve of its own; the others are their parents'
            tags["curve"] = curve_of(self.args, stage.control)
        name = f"{stage.name} · {100 * sparsity:.4g} %"
        self._write("start", key=self.key, stage=stage.name, name=name, tags=tags, data=self.data)

    def step(self, step: int, loss: float | None) -> None:
        """Log the training loss, where there is one."""
        if loss is not None and step > self.steps[self.stage]:
            self._write("loss", stage=self.stage, step=step, loss=loss)

    def usage(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the system metrics of a step."""
        if step > self.used[self.stage]:
            self._write("usage", stage=self.stage, step=step, metrics=figures)

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """Log a finished stage on its run, its ticket as a model, and its place on the curves on the parent's."""
        if stage.name in self.ended:
            return
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        scores = {f"eval/{name}": float(value) for name, value in row["eval"].items()}
        curve = {**scores, "sparsity": float(row["sparsity"])}
        point, owner = {by_percent(self.args.task): next(iter(scores.values()))}, "parent"
        if stage.room.startswith("controls/"):
            curve = {f"{stage.control}/{name}": float(value) for name, value in row["eval"].items()}
            owner = stage.name
        if stage.name in self.on_curve:  # it was trained before, and its run made anew since; the parent's was not
            curve, point = {}, {} if owner == "parent" else point
        file, ticket = self.record.at(stage) / "ticket.safetensors", {}
        if stage.room == "rounds" and stage.number and file.is_file():
            ticket = describe_ticket(file, self.args.seed)
        self._write(
            "end", stage=stage.name, step=stage.number, metrics={**numbers, **scores}, curve=curve,
            ticket=ticket, percent=round(100 * row["sparsity"]), point=point, owner=owner, starved=starved_in(row),
        )  # fmt: skip

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        coded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        self._write("finish", key=self.key, pictures=coded, table=without_secrets(table))


class Delivery:
    """Makes the runs that a journal describes, in one store. Called by the outbox's thread alone."""

    client: MlflowClient

    def __init__(self, store: str):
        self.store = store
        self.is_connected = self.is_told = False
        self.new: set[str] = set()  # runs that nobody else can have written to
        self.steps: dict[tuple[str, str], set[int]] = {}  # those that a run has of a metric, where that is in doubt
        self.left_out: set[str] = set()

    def __call__(self, box: Outbox, lines: list[Line]) -> Iterator[int]:
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

    def _send(self, lines: list[Line]) -> None:
        self.doubtful = lines[0].start < self.box.doubt
        event, stage = lines[0].record["event"], lines[0].record.get("stage", "")
        if event != "start" and self.ids.get(stage) == LEFT_OUT:
            raise ValueError("its run could not be made")
        getattr(self, "_points" if event in POINTS else f"_{event}")(lines)

    def _send_each(self, lines: list[Line]) -> Iterator[int]:
        """Send lines one by one, after some were refused: what is refused again is left out, and said."""
        for line in lines:
            try:
                self._send([line])
            except Exception as problem:
                self._doubt([line])
                if line.record["event"] == "parent" or stores.may_pass(problem) or stores.remedy(problem, self.store):
                    self.is_connected = False
                    raise self._closed(problem) from problem
                self._leave_out(line, problem)
            yield line.end

    def _leave_out(self, line: Line, problem: Exception) -> None:
        event = line.record["event"] if is_event(line.record) else DAMAGED
        if event == "start":
            self.ids[line.record["stage"]] = LEFT_OUT
        if event not in self.left_out:
            where = f"the record at byte {line.start} of {self.box.path}"
            say(f"MLflow: {where} is left out, as are others like it: {reason(problem)}")
        self.left_out.add(event)

    def _doubt(self, lines: list[Line]) -> None:
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
        usual = f"{reason(problem).rstrip('.')}. Correct MLFLOW_TRACKING_URI, or give --report_to none"
        return Closed(stores.remedy(problem, self.store) or usual)

    def _go_back(self, experiment: str) -> bool:
        starts, sent = self._starts(), self.ids["sent"]
        places = {experiment, self.ids.get("experiment", experiment)}  # it may have got another name meanwhile
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
            say(f"MLflow: the runs of {self.box.path} began in the experiment {began!r} and go on there")
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

    def _run(self, line: Line, tags: Mapping[str, str]) -> str:
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

    def _log(self, run: str, values: Mapping[str, float], step: int, time: int, model: str | None = None) -> None:
        self._log_points(run, [Metric(name, value, time, step, model_id=model) for name, value in values.items()])

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

    def _parent(self, lines: list[Line]) -> None:
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
            what = Dataset(each["name"], each["digest"], each["kind"], each["source"], None, each["profile"])
            inputs.append(DatasetInput(what, [InputTag("mlflow.data.context", each["split"])]))
        if inputs:
            self.client.log_inputs(run, inputs)

    def _reopen(self, lines: list[Line]) -> None:
        self.client.update_run(self.ids["parent"], status="RUNNING")

    def _start(self, lines: list[Line]) -> None:
        stage, before = lines[0].record["stage"], dict(self.ids)
        self.ids[stage] = self._run(lines[0], {"mlflow.parentRunId": self.ids["parent"]})
        self._log_data(self.ids[stage], lines[0].record)
        if stage in before:
            self._drop_others(lines[0].record["key"])

    def _points(self, lines: list[Line]) -> None:
        points = []
        for record in (line.record for line in lines):
            values = {"loss": record["loss"]} if record["event"] == "loss" else record["metrics"]
            points += [Metric(name, value, record["time"], record["step"]) for name, value in values.items()]
        self._log_points(self.ids[lines[0].record["stage"]], points)

    def _end(self, lines: list[Line]) -> None:
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

    def _finish(self, lines: list[Line]) -> None:
        record, parent = lines[0].record, self.ids["parent"]
        with tempfile.TemporaryDirectory() as folder:
            for name, coded in record["pictures"].items():
                (Path(folder) / name).write_bytes(base64.b64decode(coded))
            self.client.log_artifacts(parent, folder, "figures")
        figures = [f"![{Path(name).stem}]({link(parent, f'figures/{name}')})" for name in record["pictures"]]
        self.client.log_batch(parent, tags=[RunTag(NOTE, "\n\n".join([record["table"], *figures]))])
        self._drop_others(record["key"])
        self.client.set_terminated(parent, end_time=record["time"])


def by_percent(task: str) -> str:
    """The metric that makes a curve: a task's score, whose step is the sparsity in percent. It titles the chart."""
    return f"{task} {SCORES[task]} by percent pruned"


def curve_of(args: Training, control: str) -> str:
    """The curve that a run belongs to: what was trained, what its search was told beside defaults, and on what.

    Runs of one curve differ in nothing but the seed and the sparsity: its end names the model and digests the flags.
    """
    what = "dense" if control == "none" else control
    if isinstance(args, Arguments) and control == "none":
        own = [spec for spec in fields(Arguments) if spec.name in METHOD and getattr(args, spec.name) != spec.default]
        what = " ".join(["IMP", *(f"{spec.name}={getattr(args, spec.name)}" for spec in own)])
    elif args.ticket and control == "none":
        task = header(Path(args.ticket))["task"]
        what = "IMP" if task == args.task else f"IMP of {task}"
    shared = {spec.name for spec in fields(Training)} - {*COSMETIC, "seed", "ticket"}
    shared |= {"theta", "prune_rate", "schedule", "lr_span", *METHOD}
    flags = json.dumps({name: value for name, value in args.as_dict().items() if name in shared}, sort_keys=True)
    digest = hashlib.sha256(flags.encode()).hexdigest()[:4]
    return f"{what} · {args.task} · {Path(args.model_name_or_path).name} {digest}"


def describe_data(task: "Task", args: Training) -> list[dict[str, str]]:
    """The encoded rows of a task as MLflow's data sets; digests of their number and at most 1,000, evenly spread."""
    more = {f"validation_{suffix}": rows for suffix, rows in task.more.items()}
    found = []
    for split, rows in {"train": task.train, "validation": task.validation, **more}.items():
        count = len(rows)
        sample = rows.with_format(None)[:: -(-count // 1000)] if count else {}
        digest = hashlib.sha256(json.dumps([count, sample], default=str).encode()).hexdigest()[:12]
        found.append({
            "name": f"{args.task} {split}", "digest": digest, "split": "training" if split == "train" else "validation",
            "kind": "local" if args.dataset_path else "hf", "profile": json.dumps({"num_rows": count}),
            "source": json.dumps({"uri" if args.dataset_path else "path": args.dataset_path or DATASETS[args.task][0]}),
        })  # fmt: skip
    return found


def header(path: Path) -> dict[str, str]:
    """What a ticket file says of itself, without its masks."""
    with safe_open(path, "numpy") as file:
        return file.metadata()


def describe_ticket(path: Path, seed: int) -> dict[str, str]:
    """A ticket as the parameters of a logged model."""
    kept = ("task", "base_model", "base_revision", "sparsity", "pruned", "prunable", "theta_sha256", "content_sha256")
    found = {"base_sha256": "", **header(path)}
    return {**{name: found[name] for name in (*kept, "base_sha256")}, "seed": str(seed), "file": str(path.resolve())}


def model_of(client: MlflowClient, experiment: str, ticket: Mapping[str, str], run: str | None = None) -> str:
    """The id of the logged model that stands for a ticket (of one round's run), made where there is none."""
    same = f"tags.content_sha256 = '{ticket['content_sha256']}'"
    models = [
        each
        for each in all_pages(client.search_logged_models, [experiment], same)
        if run in (None, each.source_run_id) and each.tags.get("file") == ticket["file"]
    ]
    if not models:
        name = f"{ticket['task']}-seed{ticket['seed']}-{100 * float(ticket['sparsity']):.4g}pct".replace(".", "_")
        tags = {**ticket, "mlflow.model.isExternal": "true"}
        models = [client.create_logged_model(experiment, name, run, tags, dict(ticket), "lottery ticket")]
    if models[0].status != "READY":
        client.finalize_logged_model(models[0].model_id, "READY")
    return models[0].model_id


def link(run: str, path: str) -> str:
    """Where the server that shows a run's page has an artifact of it."""
    return f"get-artifact?run_uuid={run}&path={path}"


def view() -> str:
    """The state of MLflow's page of runs that shows the curves: a chart a task, the seeds of a curve as their mean.

    Its shape is that of MLflow 3.17's own saved views; see docs/mlflow.md.
    """
    same = {"type": "LINE", "metricSectionId": "curves", "runsCountToCompare": 100, "deleted": False,
            "isGenerated": False, "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
            "xAxisKey": "step", "selectedXAxisMetricKey": "", "displayPoints": True, "yAxisKey": "metric",
            "yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": False}  # fmt: skip
    charts = []
    for task in TASKS:
        key = by_percent(task)
        charts.append({**same, "uuid": task, "metricKey": key, "selectedMetricKeys": [key]})
    sections = [
        {"uuid": "curves", "name": "Step = % of weights pruned", "display": True, "columns": 1, "cardHeight": 400}
    ]
    sections += [{"uuid": name, "name": name, "display": False} for name in ("eval", *CONTROLS, "Model metrics")]
    state = {
        "compareRunCharts": charts, "compareRunSections": [{"isReordered": True, **each} for each in sections],
        "isAccordionReordered": True, "hideEmptyCharts": True, "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "curve"}]},
        "useGroupedValuesInCharts": True, "selectedColumns": [f"tags.`{tag}`" for tag in ("task", "control", "seed")],
        "searchFilter": "tags.`curve` LIKE '%'", "orderByKey": "attributes.start_time", "orderByAsc": True,
        "startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
    }  # fmt: skip
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def start_sending(path: Path, store: str) -> Outbox:
    """The journal at `path`, with a thread that sends it to an MLflow store."""
    if not store.startswith("http"):  # here, not in the thread: a fork in the middle of an import can hang
        import mlflow.store.tracking.sqlalchemy_workspace_store  # noqa: F401
    return outbox.start(path, store, Delivery(store))


def connect(store: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment there. A local store is made by one process alone.

    An experiment that was deleted is restored: MLflow keeps its name. Raises ValueError where a local database is
    another program's, and what MLflow raises.
    """
    path = stores.database(store)
    local = Path(os.path.realpath(path)) if path else None
    db_utils.MAX_RETRY_COUNT = 1  # no attempts of its own here either, each with a line of log
    db_utils._logger.setLevel(logging.CRITICAL)  # nor tracebacks: what went wrong is said once
    with files.exclusive(local) if local else nullcontext():
        client = open_database(store, path) if path else MlflowClient(tracking_uri=store)
        found = find_experiment(client)
        if found and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        artifacts = (local.parent / "mlartifacts").as_uri() if local else None  # a server knows where its own go
        experiment = (
            found.experiment_id if found else client.create_experiment(variables.name(), artifact_location=artifacts)
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
        raise ValueError(f"MLFLOW_EXPERIMENT_ID {number} is not that of the experiment {variables.name()!r}")
    return found


def open_database(store: str, path: Path) -> MlflowClient:
    """A client of a local database, whose tables are made where there are none. Raises ValueError where it is foreign.

    MLflow keeps connections to a file for as long as the process lives, also once it was deleted.
    """
    try:
        stores.check(path)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    client = MlflowClient(tracking_uri=store)
    engine = client._tracking_client.store.engine
    engine.dispose()
    if not db_utils._all_tables_exist(engine):
        db_utils._initialize_tables(engine)
    return client


def all_pages(search: Callable[..., Any], *given: Any) -> list[Any]:
    """Everything that one of the client's searches finds."""
    page = search(*given)
    found = list(page)
    while page.token:
        page = search(*given, page_token=page.token)
        found += page
    return found


def neighbours(line: Line) -> str | int:
    """The same for lines that are dealt with together, where they follow each other: the points of one run."""
    if not is_event(line.record):
        return DAMAGED
    return line.record["stage"] if line.record["event"] in POINTS else line.start


def log_report(
    store: str, name: str, paths: Sequence[Path], kind: str = "study", metrics: Mapping[str, float] | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> None:  # fmt: skip
    """Keep a report's files as artifacts of the run `report · NAME`, the same one every time, and its numbers there.

    verdicts: what `register` takes, one a task and rule.
    """
    client, experiment = connect(store)
    name = clean(without_secrets(name))
    title = f"report · {name}"
    runs = client.search_runs([experiment], f"tags.report = '{kind}'")
    same = [run.info.run_id for run in runs if run.info.run_name == title]
    tags = variables.tags() | {"report": kind}
    run = same[0] if same else client.create_run(experiment, tags=tags, run_name=title).info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
        if path.suffix == ".md":
            client.set_tag(run, NOTE, as_note(path.read_text(), run))
    client.set_tag(run, "curve", title)
    for verdict in verdicts:
        register(client, experiment, name, **verdict)
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
    for start in range(0, len(points), 1000):
        client.log_batch(run, metrics=points[start : start + 1000])
    client.set_terminated(run)


def as_note(text: str, run: str) -> str:
    """Markdown for the page of a run that has its pictures as artifacts: as many sections as MLflow takes."""
    text = re.sub(r"(?<!\\)\]\((?!http)([^)]+)\)", lambda found: f"]({link(run, found[1])})", text)
    kept, rest = "", "\n\n… the rest is in report.html, under Artifacts."
    for part in re.split(r"(?m)^(?=#{1,3} )", text):
        if len(kept) + len(part) + len(rest) > NOTE_LENGTH:
            return kept + rest
        kept += part
    return kept


def register(
    client: MlflowClient, experiment: str, study: str, rule: str, text: str, task: str, base: str,
    ticket: Path | None, seed: int,
) -> None:  # fmt: skip
    """Give the alias `matches-RULE` to the version of `BASE-TASK-ticket` that is `ticket`; to none where that is None.

    text: the verdict in words, kept as a tag of the version.
    """
    name = re.sub(r"""['"/:]""", "-", Path(base).name) + f"-{task}-ticket"  # what neither names nor filters may hold
    alias = f"matches-{rule}"
    known = client.search_registered_models(f"name = '{name}'")
    versions = client.search_model_versions(f"name = '{name}'")
    for old in versions:
        client.delete_model_version_tag(name, old.version, alias)
        explain(client, name, old.version)
    if not ticket:
        if known and alias in known[0].aliases:
            client.delete_registered_model_alias(name, alias)
        return
    if not known:
        client.create_registered_model(name, {"task": task, "base_model": base})
    model = client.get_logged_model(model_of(client, experiment, describe_ticket(ticket, seed)))
    source, run = model.artifact_location, model.source_run_id
    same = [each for each in versions if each.source == source]
    its = model.model_id if run else None  # without a run MLflow looks for it in another store
    made = same or [client.create_model_version(name, source, run, model_id=its)]
    version = made[0].version
    for key, value in {alias: text, "study": study, "seed": model.params["seed"]}.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, alias, version)
    explain(client, name, version)


def explain(client: MlflowClient, name: str, version: str) -> None:
    """Say in a version's description under which rules it matches, with the numbers."""
    tags = sorted(client.get_model_version(name, version).tags.items())
    why = [literal(f"{key}: {value}") for key, value in tags if key.startswith("matches-")]
    client.update_model_version(name, version, "\n\n".join(why) or "matches under no rule of the last report")
