"""The terminal: progress bars, or lines in a log file."""

import atexit
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from lth_scale.config.redaction import without_secrets
from lth_scale.tracking.stages import Row, Stage
from lth_scale.tracking.trackers import Listener

# Without colors in a file, whatever FORCE_COLOR says.
CONSOLE = Console(stderr=True, force_terminal=sys.stderr.isatty())
# Seconds between lines of a log file: one after each tenth of a round, within these limits.
MIN_INTERVAL, MAX_INTERVAL = 30.0, 600.0


@dataclass
class Timer:
    """Estimates the remaining time from the steps and evaluations of this process, in seconds.

    stages: how many are left, including the current one. total: its steps. step, last: its latest
    step and when that ended. previous: the steps of the stage before. evaluation: the duration of
    the latest evaluation. durations: of the latest steps.
    """

    stages: int
    total: int = 0
    step: int = 0
    last: float = 0.0
    previous: int | None = None
    evaluation: float | None = None
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def start(self, total: int) -> None:
        """Start or resume a stage."""
        self.total, self.step = total, 0

    def record(self, step: int, now: float) -> None:
        """Record a step. The first of a stage is not timed, because loading comes before it."""
        if self.step:
            self.durations.append((now - self.last) / (step - self.step))
        self.step, self.last = step, now

    def end(self, steps: int, now: float) -> None:
        """Complete a stage of `steps` steps."""
        if self.step:
            self.evaluation = now - self.last
        self.stages, self.previous = self.stages - 1, steps

    def remaining(self) -> tuple[float, float] | None:
        """Return the time to the end of the stage and of the run; None before the first timing."""
        if not self.durations:
            return None
        one, evaluation = sum(self.durations) / len(self.durations), self.evaluation or 0.0
        stage = (self.total - self.step) * one + evaluation
        steps = self.total if self.previous is None else self.previous
        return stage, stage + (self.stages - 1) * (steps * one + evaluation)


class ProgressBars(Listener):
    """Shows progress on stderr, with the time left in the stage and in all.

    Two bars on a terminal; a line now and then in a log file.
    """

    def __init__(self, rounds: int, done: int):
        self.timer, self.label, self.loss = Timer(rounds - done), "", ""
        self.logged = self.tenth = 0.0
        self.progress = Progress(
            "{task.description:<28}",
            BarColumn(20),
            MofNCompleteColumn(),
            "{task.fields[left]}",
            console=CONSOLE,
            disable=not CONSOLE.is_interactive,
            transient=True,
        )
        self.rounds = self.progress.add_task("rounds", total=rounds, completed=done, left="")
        self.steps = self.progress.add_task("", total=None, left="")
        self.progress.start()
        atexit.register(self.progress.stop)  # else the cursor stays hidden after an error

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        self.label, self.loss = f"{stage.name} · {100 * sparsity:.4g} %", ""
        self.logged, self.tenth = time.monotonic(), 0.0
        self.timer.start(steps)
        self.progress.reset(self.steps, total=steps, description=f"  {self.label}", left="")

    def step(self, step: int, loss: float | None) -> None:
        now = time.monotonic()
        self.timer.record(step, now)
        self.loss = self.loss if loss is None else f", loss {loss:.4g}"
        left = [f"{format_duration(seconds)} left" for seconds in self.timer.remaining() or ()]
        if left and step == self.timer.total:
            left[0] = "evaluating"
        if self.progress.disable:
            self._log(step, now, left)
            return
        for bar, text in zip((self.steps, self.rounds), left, strict=False):
            self.progress.update(bar, left=text)
        self.progress.update(self.steps, completed=step)

    def _log(self, step: int, now: float, left: list[str]) -> None:
        waited, tenth = now - self.logged, 10 * step // self.timer.total
        if waited < MIN_INTERVAL or (tenth == self.tenth and waited < MAX_INTERVAL):
            return
        self.logged, self.tenth = now, tenth
        times = f"; {left[0]}, {left[1]} in all" if left else ""
        if left and self.timer.evaluation is None:
            times += " without evaluation"
        print_line(f"{self.label}: step {step:,} of {self.timer.total:,}{self.loss}{times}")

    def usage(self, step: int, metrics: Mapping[str, float]) -> None:
        pass  # system metrics are not shown

    def end(self, stage: Stage, row: Row) -> None:
        self.timer.end(row["steps"], time.monotonic())
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in row["eval"].items())
        print_line(f"{self.label}: {scores}, {row['seconds']:.1f} s")
        self.progress.update(self.rounds, advance=1, left="")

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        self.progress.stop()


def format_duration(seconds: float) -> str:
    """Return seconds as `1:40:00` or `12:30`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_line(line: str) -> None:
    """Print a line on stderr, above the bars if there are any, without secrets."""
    CONSOLE.print(without_secrets(line), highlight=False, markup=False, soft_wrap=True)
