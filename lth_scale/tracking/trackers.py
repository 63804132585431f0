"""Listeners to the events of a run, and the trackers that --report_to names.

`register_tracker("wandb", Tracker(WandbListener))` adds `--report_to wandb`. Trackers are imported
when they are used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lth_scale.config.arguments import Training
from lth_scale.config.registry import Registry, lazy
from lth_scale.tracking.stages import Row, Stage

if TYPE_CHECKING:
    from lth_scale.tasks.task import Task


class Listener(Protocol):
    """Notified of every event of a run, on the main process only."""

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """A stage starts, or continues if `resumed`; its training ends after `steps` steps."""

    def step(self, step: int, loss: float | None) -> None:
        """An optimizer step is done; `loss` is None except every --logging_steps."""

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        """System metrics were read, every --logging_steps."""

    def end(self, stage: Stage, row: Row) -> None:
        """A stage is complete; `row` is its metrics.json."""

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """The run is complete. pictures: PNG by file name; table: Markdown."""


@dataclass(frozen=True)
class Tracker:
    """An experiment tracker.

    listener: (arguments, directory, task) → the listener of a search in its output directory, or
    of one seed of a transfer in that seed's directory; called on the main process. None reports
    nothing.
    check: raise BadInput if a run in this output directory cannot be reported.
    flush: deliver the waiting records when a command ends; called on every process.
    """

    listener: Callable[[Training, Path, "Task"], Listener] | None
    check: Callable[[Path], None] = lambda directory: None
    flush: Callable[[Path], None] = lambda directory: None


TRACKERS: Registry[Tracker] = Registry("tracker")
register_tracker = TRACKERS.register
register_tracker(
    "mlflow",
    Tracker(
        lazy("lth_scale.tracking.mlflow.tracker:MlflowTracker"),
        lazy("lth_scale.tracking.mlflow.settings:check_run"),
        lazy("lth_scale.tracking.mlflow.flush:flush"),
    ),
)
register_tracker("none", Tracker(None))
