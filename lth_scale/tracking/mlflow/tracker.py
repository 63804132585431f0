"""MLflow: a parent run for the command, a child run for each round, a page of curves. The only caller of MLflow.

`Tracker` writes down what happens, `Delivery` makes MLflow's runs of it. A point keeps its time, a run its key: what
may have been sent before is looked up, so that it is there once; what was deleted is sent again.
"""

import base64
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.resolution import source_name
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.console import say
from lth_scale.tracking.journal import is_event
from lth_scale.tracking.mlflow import stores, variables
from lth_scale.tracking.mlflow.delivery import start_sending
from lth_scale.tracking.mlflow.models import describe_ticket, header
from lth_scale.tracking.mlflow.view import by_percent
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Stage, starved_in

if TYPE_CHECKING:
    from lth_scale.tasks.base import Task


os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"
)  # the outbox tries again, and knows what is in doubt
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = (
    "true"  # it prints passwords, and into the progress bars
)


class MlflowTracker:
    """Writes the runs of one search into the journal of its directory; nothing that is there already."""

    def __init__(
        self,
        args: Training,
        record: RunDirectory,
        directory: Path | None = None,
        task: "Task | None" = None,
    ):
        self.args, self.record, self.key, self.stage = args, record, "", ""
        self.data = redacted(describe_data(task, args)) if task else []
        self.steps: dict[str, int] = {}  # the last one written down, by stage
        self.used: dict[str, int] = {}  # the same, of system metrics
        self.ended: set[str] = set()
        self.on_curve: set[str] = set()
        self.tags = variables.tags() | {
            "task": args.task,
            "base_model": redacted(args.as_saved()["model_name_or_path"]),
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
            sparsity = (
                float(header(Path(args.ticket))["sparsity"])
                if args.ticket
                else args.target_sparsity or 0.0
            )
            what += [
                f"{100 * sparsity:.4g} %",
                *([] if control == "none" else [control]),
                f"from {source_name(args.ticket)}",
            ]
        what += [
            Path(args.model_name_or_path).name,
            *(["quick look"] if args.preset == "quick" else []),
        ]
        name = without_secrets(args.run_name or " · ".join(what))
        params = {key: str(value)[:6000] for key, value in redacted(args.as_saved()).items()}
        self.key = uuid.uuid4().hex
        tags = {**self.tags, "control": control, "curve": curve_of(args, control)}
        self._write("parent", key=self.key, name=name, tags=tags, params=params, data=self.data)

    def _write(self, event: str, **values: Any) -> None:
        record = {"event": event, "time": int(time.time() * 1000), **values}
        self._remember(**record)
        self.box.append(record)

    def _remember(
        self, event: str, key: str = "", stage: str = "", step: int = 0, **_: Any
    ) -> None:
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
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        scores = {f"eval/{name}": float(value) for name, value in row["eval"].items()}
        curve = {**scores, "sparsity": float(row["sparsity"])}
        point, owner = {by_percent(self.args.task): next(iter(scores.values()))}, "parent"
        if stage.room.startswith("controls/"):
            curve = {f"{stage.control}/{name}": float(value) for name, value in row["eval"].items()}
            owner = stage.name
        if (
            stage.name in self.on_curve
        ):  # it was trained before, and its run made anew since; the parent's was not
            curve, point = {}, {} if owner == "parent" else point
        file, ticket = self.record.at(stage) / "ticket.safetensors", {}
        if stage.room == "rounds" and stage.number and file.is_file():
            ticket = describe_ticket(file, self.args.seed)
        self._write(
            "end",
            stage=stage.name,
            step=stage.number,
            metrics={**numbers, **scores},
            curve=curve,
            ticket=ticket,
            percent=round(100 * row["sparsity"]),
            point=point,
            owner=owner,
            starved=starved_in(row),
        )

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        coded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        self._write("finish", key=self.key, pictures=coded, table=without_secrets(table))


def curve_of(args: Training, control: str) -> str:
    """The curve that a run belongs to: what was trained, what its search was told beside defaults, and on what.

    Runs of one curve differ in nothing but the seed and the sparsity: its end names the model and digests the flags.
    """
    what = "dense" if control == "none" else control
    if isinstance(args, Arguments) and control == "none":
        own = [
            spec
            for spec in fields(Arguments)
            if spec.name in flags_with("method") and getattr(args, spec.name) != spec.default
        ]
        what = " ".join(["IMP", *(f"{spec.name}={getattr(args, spec.name)}" for spec in own)])
    elif args.ticket and control == "none":
        task = header(Path(args.ticket))["task"]
        what = "IMP" if task == args.task else f"IMP of {task}"
    shared = {spec.name for spec in fields(Training)} - {*flags_with("cosmetic"), "seed", "ticket"}
    shared |= {"theta", "prune_rate", "schedule", "lr_span", *flags_with("method")}
    flags = json.dumps(
        {name: value for name, value in args.as_dict().items() if name in shared}, sort_keys=True
    )
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
        found.append(
            {
                "name": f"{args.task} {split}",
                "digest": digest,
                "split": "training" if split == "train" else "validation",
                "kind": "local" if args.dataset_path else "hf",
                "profile": json.dumps({"num_rows": count}),
                "source": json.dumps(
                    {
                        "uri" if args.dataset_path else "path": args.dataset_path
                        or TASKS[args.task].dataset[0]
                    }
                ),
            }
        )
    return found
