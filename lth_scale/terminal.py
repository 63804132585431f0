"""What a person sees: live bars for rounds and steps, and one table at the end."""

import atexit
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.table import Table

from lth_scale import files
from lth_scale.arguments import BadInput, Transfer, printable, quoted, without_secrets
from lth_scale.journal import read_notes
from lth_scale.page import literal
from lth_scale.record import Record, Stage, starved_in

CONSOLE = Console(stderr=True, force_terminal=sys.stderr.isatty())  # in a file nothing is coloured, FORCE_COLOR or not
DELTA = 0.01  # a point: how much worse still passes for no worse, in the test of `matching.verdicts`
OFTEN, SELDOM = 30.0, 600.0  # seconds between two lines of a log: at a tenth of a round, and in any case


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


class Bars:
    """Progress on stderr, with the time left in the round and in all: two bars, or in a log file a line at times."""

    def __init__(self, rounds: int, done: int):
        self.pace, self.label, self.loss = Pace(rounds - done), "", ""
        self.said = self.tenth = 0.0
        columns = ("{task.description:<28}", BarColumn(20), MofNCompleteColumn(), "{task.fields[left]}")
        self.progress = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_interactive, transient=True)
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


def table(rows: list[dict[str, Any]]) -> str:
    """The stages as a Markdown table: number, sparsity, pruned weights, threshold, scores, seconds."""
    metrics, key = list(rows[0]["eval"]), "seed" if "seed" in rows[0] else "round"
    grid = Table(box=box.MARKDOWN)
    for title in (key, "sparsity", "pruned weights", "threshold", *map(literal, metrics), "seconds"):
        grid.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        scores = [f"{row['eval'][metric]:.4f}" for metric in metrics]
        pruned = f"{row['pruned']:,} / {row['prunable']:,}"
        grid.add_row(
            str(row[key]),
            f"{100 * row['sparsity']:.2f} %",
            pruned,
            f"{row['threshold']:.3e}",
            *scores,
            f"{row['seconds']:.1f}",
        )
    return _render(grid)


def comparison(rows: list[dict[str, Any]], controls: list[dict[str, Any]], control: str) -> str:
    """The last tickets beside a control of the same sparsity, as a Markdown table of the task's first metric."""
    metric = next(iter(rows[0]["eval"]))
    named = literal(metric)
    found = {row["round"]: row for row in rows}
    grid = Table(box=box.MARKDOWN)
    for title in ("sparsity", f"ticket: {named}", f"{control}: {named}", "ticket − control"):
        grid.add_column(title, justify="right", no_wrap=True)
    for row in controls:
        ours, theirs = found[row["round"]]["eval"][metric], row["eval"][metric]
        grid.add_row(f"{100 * row['sparsity']:.2f} %", f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}")
    return _render(grid)


def report(record: Record) -> str:
    """What a search or a transfer found: its table, and how that compares. The note of a quick look stands first."""
    parts = [f"**{record.arguments.note}**"] if record.arguments.note else []
    if isinstance(record.arguments, Transfer):
        rows = record.rows("seeds")
        return "\n\n".join([*parts, table(rows), *starved(rows), *over_seeds(record, record.arguments)])
    rows, control = record.rows(), record.control
    controls = record.rows(f"controls/{control}")
    parts += [table(rows), *([comparison(rows, controls, control)] if controls else [])]
    return "\n\n".join([*parts, *starved(rows), *starved(controls, f"{control} ")])


def starved(rows: list[dict[str, Any]], of: str = "") -> list[str]:
    """The footer of a table: which of its rows are of a network with a matrix that is all but empty."""
    named = [(key, row) for row in rows for key in ("seed", "round") if key in row]
    lines = [f"- {of}{key} {row[key]:02d}: {literal(words)}" for key, row in named if (words := starved_in(row))]
    return ["Little or nothing passes through some matrices:", "\n".join(lines)] if lines else []


def over_seeds(record: Record, args: Transfer) -> list[str]:
    """Mean and spread over the seeds, and with --compare_with the verdicts under each rule."""
    from lth_scale import matching  # imports scipy: bad input does not wait for it

    found = by_seed(record.directory)
    metric = next(iter(record.rows("seeds")[0]["eval"]))
    parts = [f"{literal(metric)}: {matching.summary([*found.values()]):.4f}"]
    if args.compare_with:
        verdicts = matching.verdicts(found, by_seed(Path(args.compare_with)), DELTA)
        parts.append(f"against {literal(args.compare_with)}:\n{matching.describe(verdicts, digits=4)}")
    path = record.directory / "connectivity.json"
    if path.is_file():
        found = files.read_json(path)
        parts.append(f"linear path between seeds {found['seeds']}: barrier {found['barrier']:.4f} in {literal(metric)}")
    return parts


def by_seed(directory: Path) -> dict[int, float]:
    """The task's metric of each seed in the directory of a transfer. Raises BadInput where it is none."""
    try:
        rows = files.read_json(directory / "results.json")
        return {row["seed"]: next(iter(row["eval"].values())) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BadInput(f"--compare_with {directory}: holds no results of lth_scale.transfer; give another") from problem


def show(record: Record) -> None:
    """Print the result, where it lies, and how to look at it. On the main process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [report(record), "", f"written to  {quoted(record.directory)}"]
    if (record.directory / "ticket.safetensors").is_file():
        lines.append(f"the ticket  {quoted(record.directory / 'ticket.safetensors')}")
    tracked = sorted([*record.directory.glob("mlflow.json"), *record.directory.glob("seeds/*/mlflow.json")])
    if tracked:
        lines += how_to_open_mlflow(tracked[0])
    print("\n" + printable("\n".join(lines)), flush=True)


def how_to_open_mlflow(path: Path) -> list[str]:
    """The command that serves the store, and the page that shows the curves of the runs in `path` (mlflow.json)."""
    notes = read_notes(path) or {}
    if "experiment" not in notes:
        return []  # nothing was sent yet, or the file is damaged: what it would lead to is in the journal too
    store, experiment = printable(notes["store"]), printable(notes["experiment"])
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    page += "&viewStateShareKey=curves"
    if store.startswith("http"):
        return [f"MLflow      {store.rstrip('/')}/{page}"]
    mlflow = quoted(os.path.relpath(Path(sys.executable).with_name("mlflow")))
    return [
        f"MLflow      {mlflow} ui --host 127.0.0.1 --backend-store-uri {shlex.quote(store)}",
        f"            then open http://127.0.0.1:5000/{page}",
    ]


def _render(grid: Table) -> str:
    console = Console(width=200, force_terminal=False, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.strip() for line in capture.get().splitlines() if line.strip())
