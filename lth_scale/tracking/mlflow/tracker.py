"""The listener that writes the events of a run into its journal for MLflow.

A parent run stands for the command, a child run for each round, and points of the parent for the
curves. `MlflowDelivery` makes the runs.
"""

import base64
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.arguments import Training, Transfer
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.resolution import source_name
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, stores, variables
from lth_scale.tracking.mlflow.curves import curve_name
from lth_scale.tracking.mlflow.delivery import start_sending
from lth_scale.tracking.mlflow.inputs import describe_data
from lth_scale.tracking.mlflow.tickets import describe_ticket, metadata
from lth_scale.tracking.mlflow.view import by_percent
from lth_scale.tracking.rows import Row, describe_starved
from lth_scale.tracking.stages import Stage

if TYPE_CHECKING:
    from lth_scale.tasks.task import Task

LONGEST_PARAM = 6000  # characters that MLflow stores
# The sender retries, and knows which records to deduplicate.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow would print passwords, and into the progress bars.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


class MlflowTracker:
    """Writes the records of one search, or of one seed of a transfer, each of them once.

    directory: holds the journal. task: its data sets become inputs of the runs.
    """

    def __init__(self, args: Training, directory: Path, task: "Task | None" = None):
        self.args, self.output_dir, self.stage, self.key = args, Path(args.output_dir), "", ""
        self.data = redacted(describe_data(task, args)) if task else []
        self.losses: dict[str, int] = {}  # the last step recorded, by stage
        self.usages: dict[str, int] = {}
        self.ended: set[str] = set()
        self.on_curve: set[str] = set()
        self.tags = variables.tags() | {
            "task": args.task,
            "base_model": redacted(args.as_saved()["model_name_or_path"]),
            "seed": str(args.seed),
        }
        if args.note:
            self.tags["note"] = args.note
        store = stores.tracking_uri(self.output_dir)
        self._report_store(store)
        self.sender = start_sending(directory / journal.NAME, store)
        for line in journal.events(self.sender.path):
            self._replay(**line.record)
        if self.key:
            self._write("reopen")
        else:
            self._write_parent()

    def _report_store(self, store: str) -> None:
        inside = self.output_dir.resolve() / "mlflow.db"
        if store == stores.address(inside) and not inside.exists():
            print_line(f"MLflow: records go to {inside}: the parent directory is not writable")

    def _write_parent(self) -> None:
        args = self.args
        control = args.control if isinstance(args, Transfer) else "none"
        params = redacted(args.as_saved()).items()
        self.key = uuid.uuid4().hex
        self._write(
            "parent",
            key=self.key,
            name=run_name(args),
            tags={**self.tags, "control": control, "curve": curve_name(args, control)},
            params={key: str(value)[:LONGEST_PARAM] for key, value in params},
            data=self.data,
        )

    def _write(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": int(time.time() * 1000), **fields}
        self._replay(**record)
        self.sender.append(record)

    def _replay(self, event: str, key: str = "", stage: str = "", step: int = 0, **_: Any) -> None:
        """Update what is known of the journal with a record of it."""
        if event == "parent":
            self.key = key
        elif event == "start":
            self.losses[stage] = self.usages[stage] = -1
            self.ended.discard(stage)
        elif event == "loss":
            self.losses[stage] = step
        elif event == "usage":
            self.usages[stage] = step
        elif event == "end":
            self.ended.add(stage)
            self.on_curve.add(stage)

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool = False) -> None:
        """Open the child run of a stage. Unless resumed, it replaces an unfinished one."""
        self.stage = stage.name
        if resumed and stage.name in self.losses:
            return
        tags = {**self.tags, "control": stage.control, "round": str(stage.number)}
        if stage.is_control:  # has a curve of its own, the others are points of their parent's
            tags["curve"] = curve_name(self.args, stage.control)
        name = f"{stage.name} · {100 * sparsity:.4g} %"
        self._write("start", key=self.key, stage=stage.name, name=name, tags=tags, data=self.data)

    def step(self, step: int, loss: float | None) -> None:
        """Log the training loss, if there is one."""
        if loss is not None and step > self.losses[self.stage]:
            self._write("loss", stage=self.stage, step=step, loss=loss)

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the system metrics of a step."""
        if step > self.usages[self.stage]:
            self._write("usage", stage=self.stage, step=step, metrics=metrics)

    def end(self, stage: Stage, row: Row) -> None:
        """Log a complete stage: metrics and ticket on its run, its points on the curves."""
        if stage.name in self.ended:
            return
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        scores = {f"eval/{name}": float(value) for name, value in row["eval"].items()}
        curve, point = {**scores, "sparsity": float(row["sparsity"])}, next(iter(scores.values()))
        if stage.is_control:
            curve = {f"{stage.control}/{name}": float(value) for name, value in row["eval"].items()}
        # A stage that is trained again gets a new run, while its parent has its points already.
        is_new = stage.name not in self.on_curve
        is_own = stage.is_control
        self._write(
            "end",
            stage=stage.name,
            step=stage.number,
            metrics={**numbers, **scores},
            curve=curve if is_new else {},
            ticket=self._ticket(stage),
            percent=round(100 * row["sparsity"]),
            point={by_percent(self.args.task): point} if is_new or is_own else {},
            owner=stage.name if is_own else "parent",
            starved=describe_starved(row),
        )

    def _ticket(self, stage: Stage) -> dict[str, str]:
        """Describe the ticket of a pruned round; empty for other stages."""
        file = self.output_dir / stage.path / "ticket.safetensors"
        is_found = stage.key == "round" and not stage.is_control and stage.number and file.is_file()
        return describe_ticket(file, self.args.seed) if is_found else {}

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Attach the pictures and the table to the parent run and close it."""
        encoded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
        self._write("finish", key=self.key, pictures=encoded, table=without_secrets(table))


def run_name(args: Training) -> str:
    """Return --run_name, or the task, the seed, what is trained and the model."""
    parts = [args.task, f"seed {args.seed}"]
    if isinstance(args, Transfer):
        sparsity = args.target_sparsity or 0.0
        if args.ticket:
            sparsity = float(metadata(Path(args.ticket))["sparsity"])
        parts.append(f"{100 * sparsity:.4g} %")
        if args.control != "none":
            parts.append(args.control)
        parts.append(f"from {source_name(args.ticket)}")
    parts.append(Path(args.model_name_or_path).name)
    if args.preset == "quick":
        parts.append("quick look")
    return without_secrets(args.run_name or " · ".join(parts))
