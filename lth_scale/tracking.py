"""MLflow: a parent run for the command, a child run for each round. The only caller of MLflow."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from lth_scale import files
from lth_scale.arguments import Training, Transfer, source_name, without_secrets
from lth_scale.record import Record, Stage

EXPERIMENT = "lth_scale"


class Tracker:
    """The runs of one search. Their ids are kept in the output directory, so that going on reopens them."""

    def __init__(self, args: Training, record: Record, directory: Path | None = None):
        self.args, self.store = args, record.mlflow_store()
        self.client, experiment = connect(self.store)
        self.path = (directory or record.directory) / "mlflow.json"
        ids = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.ids: dict[str, str] = ids if ids.get("store") == without_secrets(self.store) else {}
        self.tags = {"task": args.task, "base_model": args.model_name_or_path, "seed": str(args.seed)}
        if args.note:
            self.tags["note"] = args.note
        self.current = ""
        if not self.ids:
            self._create_parent(experiment)
        self.client.update_run(self.ids["parent"], status="RUNNING")

    def _create_parent(self, experiment: str) -> None:
        args, control = self.args, "none"
        what = [args.task, Path(args.model_name_or_path).name]
        if isinstance(args, Transfer):
            control = args.control
            what += [f"from {source_name(args.ticket)}", *([] if control == "none" else [control])]
        name = args.run_name or " · ".join([*what, f"seed {args.seed}", *(["quick look"] if args.note else [])])
        self.ids = {"store": without_secrets(self.store), "experiment": experiment}
        self.ids["parent"] = self._create(name, {**self.tags, "control": control})
        params = [Param(key, str(value)[:6000]) for key, value in self.args.as_dict().items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.ids["parent"], params=params[start : start + 100])
        files.write_json(self.path, self.ids)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        return self.client.create_run(self.ids["experiment"], tags=dict(tags), run_name=name).info.run_id

    def start(self, stage: Stage, sparsity: float, steps: int) -> None:
        """Open the child run of a stage; one that was left unfinished is made anew, so that no step is there twice."""
        if stage.name in self.ids:
            self.client.delete_run(self.ids[stage.name])
        tags = {
            **self.tags,
            "control": stage.control,
            "round": str(stage.number),
            "mlflow.parentRunId": self.ids["parent"],
        }
        self.current = self.ids[stage.name] = self._create(f"{stage.name} · {100 * sparsity:.4g} %", tags)
        files.write_json(self.path, self.ids)

    def step(self, step: int, loss: float | None) -> None:
        """Log the training loss, where there is one."""
        if loss is not None:
            self.client.log_metric(self.current, "loss", loss, step=step, synchronous=False)

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """Log a finished stage on its run, and its place on the curve over rounds on the parent's."""
        now = int(time.time() * 1000)
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        scores = {f"eval/{name}": value for name, value in row["eval"].items()}
        metrics = [Metric(name, float(value), now, 0) for name, value in {**numbers, **scores}.items()]
        self.client.log_batch(self.current, metrics=metrics)
        self.client.set_terminated(self.current)
        curve = {f"{stage.control}/{name}": value for name, value in row["eval"].items()}
        if not stage.room.startswith("controls/"):
            curve = {**scores, "sparsity": row["sparsity"]}
        on_parent = [Metric(name, float(value), now, stage.number) for name, value in curve.items()]
        self.client.log_batch(self.ids["parent"], metrics=on_parent)

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        with tempfile.TemporaryDirectory() as folder:
            for name, png in pictures.items():
                (Path(folder) / name).write_bytes(png)
            self.client.log_artifacts(self.ids["parent"], folder, "figures")
        self.client.log_batch(self.ids["parent"], tags=[RunTag("mlflow.note.content", table)])
        self.client.set_terminated(self.ids["parent"])


def connect(store: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment there. A local store is made by one process alone."""
    local = Path(store.removeprefix("sqlite:///")).resolve() if store.startswith("sqlite:///") else None
    with files.exclusive(local) if local else nullcontext():
        client = MlflowClient(tracking_uri=store)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found:
            return client, found.experiment_id
        artifacts = (local.parent / "mlartifacts").as_uri() if local else None  # a server knows where its own go
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def log_report(store: str, name: str, paths: Sequence[Path]) -> None:
    """Keep the files of a study's report as artifacts of the run `report · NAME`, the same one every time."""
    client, experiment = connect(store)
    title = f"report · {name}"
    runs = client.search_runs([experiment], "tags.report = 'study'")
    same = [run.info.run_id for run in runs if run.info.run_name == title]
    run = same[0] if same else client.create_run(experiment, tags={"report": "study"}, run_name=title).info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
    client.set_terminated(run)
