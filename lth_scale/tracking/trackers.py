"""The trackers that --report_to names. Does not import them.

`register_tracker("wandb", Tracker(WandbListener))` adds `--report_to wandb`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lth_scale.config.arguments import Training
from lth_scale.config.registry import Registry, lazy
from lth_scale.tracking.listeners import Listener

if TYPE_CHECKING:
    from lth_scale.tasks.task import Task


def _nothing(directory: Path) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Tracker:
    """An experiment tracker.

    listener: (arguments, directory, task) → the listener of a search in its output directory, or
    of one seed of a transfer in that seed's directory; called on the main process. None reports
    nothing.
    check: raise BadInput if a run in this output directory cannot be reported.
    flush: deliver what is still waiting when a command ends; called on every process.
    """

    listener: Callable[[Training, Path, "Task"], Listener] | None
    check: Callable[[Path], None] = _nothing
    flush: Callable[[Path], None] = _nothing


TRACKERS: Registry[Tracker] = Registry("tracker")
register_tracker = TRACKERS.register
register_tracker(
    "mlflow",
    Tracker(
        lazy("lth_scale.tracking.mlflow.tracker:MlflowTracker"),
        lazy("lth_scale.tracking.mlflow.checks:check"),
        lazy("lth_scale.tracking.mlflow.flush:flush"),
    ),
)
register_tracker("none", Tracker(None))
