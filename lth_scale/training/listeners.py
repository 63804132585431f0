"""The listeners of a run: progress bars, and trackers as --report_to names them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lth_scale.config.arguments import Training
from lth_scale.tasks.task import Task
from lth_scale.tracking import console
from lth_scale.tracking.listeners import Listener
from lth_scale.tracking.rows import Row
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Stage
from lth_scale.tracking.trackers import TRACKERS
from lth_scale.training.networks import Network


class Listeners:
    """Passes each event on to several listeners: none on all ranks but the main process."""

    def __init__(self, listeners: Iterable[Listener] = ()):
        self.listeners = [*listeners]

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """Pass on that a stage starts."""
        for listener in self.listeners:
            listener.start(stage, sparsity, steps, resumed)

    def step(self, step: int, loss: float | None) -> None:
        """Pass on an optimizer step."""
        for listener in self.listeners:
            listener.step(step, loss)

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on system metrics."""
        for listener in self.listeners:
            listener.usage(step, metrics)

    def end(self, stage: Stage, row: Row) -> None:
        """Pass on that a stage is complete."""
        for listener in self.listeners:
            listener.end(stage, row)

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """Pass on that the run is complete."""
        for listener in self.listeners:
            listener.finish(pictures, table)


class TrackerPerStage(Listeners):
    """A tracker of its own for each stage, finished when the next one starts.

    create: opens the tracker of a stage. report: the table of the run so far, as Markdown.
    """

    def __init__(self, create: Callable[[Stage], Listener], report: Callable[[], str]):
        super().__init__()
        self.create, self.report = create, report

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """Finish the tracker of the stage before, and open that of this one."""
        if self.listeners:
            self.finish({}, self.report())
        self.listeners = [self.create(stage)]
        super().start(stage, sparsity, steps, resumed)


def create_listeners(
    run_directory: RunDirectory, net: Network, stages: int, create: Callable[[], Listener]
) -> Listeners:
    """Create the listeners of a run of so many stages; none on other ranks than the main process.

    create: opens the tracker of --report_to.
    """
    if not net.accelerator.is_main_process:
        return Listeners()
    trackers = [create()] if TRACKERS[net.args.report_to].listener else []
    completed = len(run_directory.all_rows())
    return Listeners([*trackers, console.ProgressBars(stages, completed)])


def create_tracker(args: Training, directory: Path, task: Task) -> Listener:
    """Open the tracker of --report_to for a search, or for one seed of a transfer."""
    listener = TRACKERS[args.report_to].listener
    assert listener is not None, "--report_to none has no tracker"
    return listener(args, directory, task)
