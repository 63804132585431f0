"""Listeners: what is notified of the events of a run, such as the progress bars and MLflow."""

from collections.abc import Mapping
from typing import Protocol

from lth_scale.tracking.rows import Row
from lth_scale.tracking.stages import Stage


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
