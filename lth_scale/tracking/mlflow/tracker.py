"""The listener that writes the events of a run into its journal for MLflow.

A parent run stands for the command, a child run for each round, and points of the parent for the
curves. `MlflowDelivery` creates the runs.
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
from lth_scale.config.resolution import header_of, source_name
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, settings
from lth_scale.tracking.mlflow.connection import by_percent
from lth_scale.tracking.mlflow.delivery import start_sending
from lth_scale.tracking.mlflow.models import describe_ticket
from lth_scale.tracking.stages import (
    Row,
    Stage,
    describe_starved,
    recorded_trivial,
    sparsity_beside,
)
from lth_scale.tracking.trackers import Listener

if TYPE_CHECKING:
    from datasets import Dataset

    from lth_scale.tasks.task import Task

LONGEST_PARAM = 6000  # characters that MLflow stores
SAMPLE = 1000  # rows of a split that its digest covers, evenly spaced
# The sender retries, and knows which records to deduplicate.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow would print passwords, and into the progress bars.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


class MlflowTracker(Listener):
    """Writes the records of one search, or of one seed of a transfer, each of them once.

    directory: holds the journal. task: its data sets become inputs of the runs.
    """

    def __init__(self, args: Training, directory: Path, task: "Task | None" = None):
        self.args, self.output_dir, self.stage, self.key = args, Path(args.output_dir), "", ""
        self.data = redacted(_describe_data(task, args)) if task else []
        self.steps: dict[tuple[str, str], int] = {}  # the last one recorded, by stage and event
        self.ended: set[str] = set()
        self.on_curve: set[str] = set()
        self.tags = settings.tags() | {
            "task": args.task,
            "base_model": redacted(args.as_saved()["model_name_or_path"]),
            "seed": str(args.seed),
            **({"note": args.note} if args.note else {}),
        }
        store, inside = (
            settings.tracking_uri(self.output_dir),
            self.output_dir.resolve() / "mlflow.db",
        )
        if store == settings.address(inside) and not inside.exists():
            print_line(f"MLflow: records go to {inside}: the parent directory is not writable")
        self.sender = start_sending(directory / journal.NAME, store)
        for line in journal.events(self.sender.path):
            self._replay(**line.record)
        if self.key:
            self._write("reopen")
        else:
            self._write_parent()

    def _write_parent(self) -> None:
        args = self.args
        control = args.control if isinstance(args, Transfer) else "none"
        params = redacted(args.as_saved()).items()
        self._write(
            "parent",
            key=uuid.uuid4().hex,
            name=_run_name(args),
            tags={**self.tags, "control": control, "curve": _curve_name(args, control)},
            params={key: str(value)[:LONGEST_PARAM] for key, value in params},
            data=self.data,
        )

    def _write(self, event: str, **values: Any) -> None:
        record = {"event": event, "time": int(time.time() * 1000), **values}
        self._replay(**record)
        self.sender.append(record)

    def _replay(self, event: str, key: str = "", stage: str = "", step: int = 0, **_: Any) -> None:
        """Update the state that follows from the journal with one of its records."""
        if event == "parent":
            self.key = key
        elif event == "start":
            self.steps |= dict.fromkeys(((stage, points) for points in journal.POINTS), -1)
            self.ended.discard(stage)
        elif event in journal.POINTS:
            self.steps[stage, event] = step
        elif event == "end":
            self.ended.add(stage)
            self.on_curve.add(stage)

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool = False) -> None:
        """Open the child run of a stage. Unless resumed, it replaces an unfinished one."""
        self.stage = stage.name
        if resumed and (stage.name, "loss") in self.steps:
            return
        tags = {**self.tags, "control": stage.control, "round": str(stage.number)}
        if stage.is_control:  # has a curve of its own, the others are points of their parent's
            tags["curve"] = _curve_name(self.args, stage.control)
        name = f"{stage.name} · {100 * sparsity:.4g} %"
        self._write("start", key=self.key, stage=stage.name, name=name, tags=tags, data=self.data)

    def step(self, step: int, loss: float | None) -> None:
        if loss is not None and step > self.steps[self.stage, "loss"]:
            self._write("loss", stage=self.stage, step=step, loss=loss)

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.steps[self.stage, "usage"]:
            self._write("usage", stage=self.stage, step=step, metrics=metrics)

    def end(self, stage: Stage, row: Row) -> None:
        """Log a complete stage: metrics and ticket on its run, its points on the curves."""
        if stage.name in self.ended:
            return
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        scores = {name: float(value) for name, value in row["eval"].items()}
        metric, score = next(iter(scores.items()))
        point = {by_percent(self.args.task, metric): score}
        evaluated = {f"eval/{name}": value for name, value in scores.items()}
        trivial = {
            f"trivial/{predictor}/{metric}": score
            for predictor, by_metric in recorded_trivial([row]).items()
            for metric, score in by_metric.items()
        }
        curve = {**evaluated, **trivial, "sparsity": float(row["sparsity"])}
        if stage.is_control:
            curve = {f"{stage.control}/{name}": value for name, value in scores.items()}
        file = self.output_dir / stage.path / "ticket.safetensors"
        has_ticket = (
            stage.key == "round" and not stage.is_control and stage.number and file.is_file()
        )
        # A stage that is trained again gets a new run, while its parent has its points already.
        is_new = stage.name not in self.on_curve
        self._write(
            "end",
            stage=stage.name,
            step=stage.number,
            metrics={**numbers, **evaluated},
            curve=curve if is_new else {},
            ticket=describe_ticket(file, self.args.seed) if has_ticket else {},
            percent=round(100 * sparsity_beside(row)),
            point=point if is_new or stage.is_control else {},
            owner=stage.name if stage.is_control else "parent",
            starved=describe_starved(row),
        )

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        self._write("finish", key=self.key, pictures=encoded, table=without_secrets(table))


def _run_name(args: Training) -> str:
    """Return --run_name, or the task, the seed, what is trained and the model."""
    parts = [args.task, f"seed {args.seed}"]
    if isinstance(args, Transfer):
        sparsity = args.target_sparsity or 0.0
        if args.ticket:
            sparsity = float(header_of(args.ticket)["sparsity"])
        parts.append(f"{100 * sparsity:.4g} %")
        if args.control != "none":
            parts.append(args.control)
        parts.append(f"from {source_name(args.ticket)}")
    parts.append(Path(args.model_name_or_path).name)
    if args.preset == "quick":
        parts.append("quick look")
    return without_secrets(args.run_name or " · ".join(parts))


def _curve_name(args: Training, control: str) -> str:
    """Return the curve of a run: the method, the task, the model and a digest of the flags.

    Runs of one curve differ in nothing but the seed and the sparsity.
    """
    shared = {spec.name for spec in fields(Training)} - {*flags_with("cosmetic"), "seed", "ticket"}
    shared |= {"theta", "prune_rate", "schedule", "lr_span", *flags_with("method")}
    flags = {name: value for name, value in args.as_dict().items() if name in shared}
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:4]
    model = Path(args.model_name_or_path).name
    return f"{_method_name(args, control)} · {args.task} · {model} {digest}"


def _method_name(args: Training, control: str) -> str:
    """Return the control; else `IMP` with the flags that are not defaults, or `dense`."""
    if control != "none":
        return control
    if isinstance(args, Arguments):
        flags = [
            f"{spec.name}={getattr(args, spec.name)}"
            for spec in fields(Arguments)
            if spec.name in flags_with("method") and getattr(args, spec.name) != spec.default
        ]
        return " ".join(["IMP", *flags])
    if not args.ticket:
        return "dense"
    task = header_of(args.ticket)["task"]
    return "IMP" if task == args.task else f"IMP of {task}"


def _describe_data(task: "Task", args: Training) -> list[dict[str, str]]:
    """Describe the tokenized splits of a task as MLflow data sets."""
    path = args.dataset_path or args.train_file
    name = args.dataset_name or TASKS[args.task].dataset[0]
    source = {"uri": path} if path else {"path": name}
    more = {f"validation_{suffix}": rows for suffix, rows in task.more.items()}
    return [
        {
            "name": f"{args.task} {split}",
            "digest": _digest(rows),
            "split": "training" if split == "train" else "validation",
            "kind": "local" if path else "hf",
            "profile": json.dumps({"num_rows": len(rows)}),
            "source": json.dumps(source),
        }
        for split, rows in {"train": task.train, "validation": task.validation, **more}.items()
    ]


def _digest(rows: "Dataset") -> str:
    """Return 12 hex digits of the SHA-256 of the number of rows and a sample of them."""
    count = len(rows)
    sample = rows.with_format(None)[:: -(-count // SAMPLE)] if count else {}
    return hashlib.sha256(json.dumps([count, sample], default=str).encode()).hexdigest()[:12]
