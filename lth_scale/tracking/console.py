"""What a terminal shows while a run works: progress bars and lines."""

import atexit
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from lth_scale.config.redaction import without_secrets
from lth_scale.tracking.stages import Stage

CONSOLE = Console(
    stderr=True, force_terminal=sys.stderr.isatty()
)  # in a file nothing is coloured, FORCE_COLOR or not
OFTEN, SELDOM = (
    30.0,
    600.0,
)  # seconds between two lines of a log: at a tenth of a round, and in any case


@dataclass
class Pace:
    """How long steps and evaluations take in this process, and so how long the rest will. Times are in seconds.

    stages: those not done, with the present one; total: its steps; step, last: the last one, and when that was; usual:
    the steps of the stage before; evaluation: what came after its last step; took: the latest steps, one by one.
    """

    stages: int
    total: int = 0
    step: int = 0
    last: float = 0.0
    usual: int | None = None
    evaluation: float | None = None
    took: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def start(self, total: int) -> None:
        """A stage begins, or goes on."""
        self.total, self.step = total, 0

    def go(self, step: int, now: float) -> None:
        """A step is done. The first of a stage is not timed: much else is done before it."""
        if self.step:
            self.took.append((now - self.last) / (step - self.step))
        self.step, self.last = step, now

    def end(self, steps: int, now: float) -> None:
        """A stage of so many steps is done."""
        if self.step:
            self.evaluation = now - self.last
        self.stages, self.usual = self.stages - 1, steps

    def left(self) -> tuple[float, float] | None:
        """To the end of the stage, and of all; None before anything was timed."""
        if not self.took:
            return None
        one, evaluation = sum(self.took) / len(self.took), self.evaluation or 0.0
        stage = (self.total - self.step) * one + evaluation
        usual = self.total if self.usual is None else self.usual
        return stage, stage + (self.stages - 1) * (usual * one + evaluation)


class ProgressBars:
    """Progress on stderr, with the time left in the round and in all: two bars, or in a log file a line at times."""

    def __init__(self, rounds: int, done: int):
        self.pace, self.label, self.loss = Pace(rounds - done), "", ""
        self.said = self.tenth = 0.0
        columns = (
            "{task.description:<28}",
            BarColumn(20),
            MofNCompleteColumn(),
            "{task.fields[left]}",
        )
        self.progress = Progress(
            *columns, console=CONSOLE, disable=not CONSOLE.is_interactive, transient=True
        )
        self.rounds = self.progress.add_task("rounds", total=rounds, completed=done, left="")
        self.steps = self.progress.add_task("", total=None, left="")
        self.progress.start()
        atexit.register(self.progress.stop)  # or the cursor stays hidden after an error

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """A stage begins, or goes on."""
        self.label, self.loss = f"{stage.name} · {100 * sparsity:.4g} %", ""
        self.said, self.tenth = time.monotonic(), 0.0
        self.pace.start(steps)
        self.progress.reset(self.steps, total=steps, description=f"  {self.label}", left="")

    def step(self, step: int, loss: float | None) -> None:
        """A step is done."""
        now = time.monotonic()
        self.pace.go(step, now)
        self.loss = self.loss if loss is None else f", loss {loss:.4g}"
        left = [f"{clock(seconds)} left" for seconds in self.pace.left() or ()]
        if left and step == self.pace.total:
            left[0] = "evaluating"
        if self.progress.disable:
            self._log(step, now, left)
            return
        for bar, text in zip((self.steps, self.rounds), left, strict=False):
            self.progress.update(bar, left=text)
        self.progress.update(self.steps, completed=step)

    def _log(self, step: int, now: float, left: list[str]) -> None:
        waited, tenth = now - self.said, 10 * step // self.pace.total
        if waited < OFTEN or (tenth == self.tenth and waited < SELDOM):
            return
        self.said, self.tenth = now, tenth
        times = f"; {left[0]}, {left[1]} in all" if left else ""
        blind = " but for evaluation" if left and self.pace.evaluation is None else ""
        say(f"{self.label}: step {step:,} of {self.pace.total:,}{self.loss}{times}{blind}")

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        """Not shown."""

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """A stage is done."""
        self.pace.end(row["steps"], time.monotonic())
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in row["eval"].items())
        say(f"{self.label}: {scores}, {row['seconds']:.1f} s")
        self.progress.update(self.rounds, advance=1, left="")

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """The search is done."""
        self.progress.stop()


def clock(seconds: float) -> str:
    """`1:40:00` or `12:30`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(line: str) -> None:
    """Print one line on stderr, above the bars where there are any; without secrets."""
    CONSOLE.print(without_secrets(line), highlight=False, markup=False, soft_wrap=True)
