"""Who is told of the events of a run: the console, MLflow, and trackers of third parties."""

from collections.abc import Mapping
from typing import Any, Protocol

from lth_scale.tracking.stages import Stage


class Listener(Protocol):
    """Told of every event, on the main process alone."""

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """A stage begins, or continues where `resumed`; its training ends after `steps` steps."""

    def step(self, step: int, loss: float | None) -> None:
        """An optimizer step is done; `loss` is None but every --logging_steps."""

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        """System metrics, every --logging_steps."""

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """A stage is complete; `row` is its metrics.json."""

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """The run is complete; pictures: PNG by file name; table: Markdown."""
