"""What a person sees: live bars for rounds and steps, and one table at the end."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lth_scale.arguments import BadInput, Transfer
from lth_scale.record import Record, Stage

CONSOLE = Console(stderr=True)
DELTA = 0.01  # a point: how much worse still passes for no worse, in the test of `matching.verdicts`


class Bars:
    """Progress on stderr: one bar over the rounds, one over the steps of the round; plain lines in a log file."""

    def __init__(self, rounds: int, done: int):
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal, transient=True)
        self.rounds = self.progress.add_task("rounds", total=rounds, completed=done)
        self.steps = self.progress.add_task("steps", total=None)
        self.progress.start()

    def start(self, stage: Stage, sparsity: float, steps: int, resumed: bool) -> None:
        """A stage begins, or goes on."""
        label = f"  {stage.name} · {100 * sparsity:.4g} %"
        self.progress.reset(self.steps, total=steps, description=label)

    def step(self, step: int, loss: float | None) -> None:
        """A step is done."""
        self.progress.update(self.steps, completed=step)

    def end(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """A stage is done."""
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in row["eval"].items())
        label = f"{stage.name} · {100 * row['sparsity']:.4g} %"
        say(f"{label}: {scores}, {row['seconds']:.1f} s")
        self.progress.advance(self.rounds)

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """The search is done."""
        self.progress.stop()


def say(line: str) -> None:
    """Print one line on stderr, above the bars where there are any."""
    CONSOLE.print(line, highlight=False, markup=False, soft_wrap=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The stages as a Markdown table: number, sparsity, pruned weights, threshold, scores, seconds."""
    metrics, key = list(rows[0]["eval"]), "seed" if "seed" in rows[0] else "round"
    grid = Table(box=box.MARKDOWN)
    for title in (key, "sparsity", "pruned weights", "threshold", *metrics, "seconds"):
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
    found = {row["round"]: row for row in rows}
    grid = Table(box=box.MARKDOWN)
    for title in ("sparsity", f"ticket: {metric}", f"{control}: {metric}", "ticket − control"):
        grid.add_column(title, justify="right", no_wrap=True)
    for row in controls:
        ours, theirs = found[row["round"]]["eval"][metric], row["eval"][metric]
        grid.add_row(f"{100 * row['sparsity']:.2f} %", f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}")
    return _render(grid)


def report(record: Record) -> str:
    """What a search or a transfer found: its table, and how that compares. The note of a quick look stands first."""
    parts = [f"**{record.arguments.note}**"] if record.arguments.note else []
    if isinstance(record.arguments, Transfer):
        return "\n\n".join([*parts, table(record.rows("seeds")), *over_seeds(record, record.arguments)])
    rows, control = record.rows(), record.control
    controls = record.rows(f"controls/{control}")
    return "\n\n".join([*parts, table(rows), *([comparison(rows, controls, control)] if controls else [])])


def over_seeds(record: Record, args: Transfer) -> list[str]:
    """Mean and spread over the seeds, and with --compare_with the verdicts under each rule."""
    from lth_scale import matching  # imports scipy: bad input does not wait for it

    found = by_seed(record.directory)
    metric = next(iter(record.rows("seeds")[0]["eval"]))
    parts = [f"{metric}: {matching.summary([*found.values()]):.4f}"]
    if args.compare_with:
        verdicts = matching.verdicts(found, by_seed(Path(args.compare_with)), DELTA)
        parts.append(f"against {args.compare_with}:\n{matching.describe(verdicts, digits=4)}")
    path = record.directory / "connectivity.json"
    if path.is_file():
        found = json.loads(path.read_text())
        parts.append(f"linear path between seeds {found['seeds']}: barrier {found['barrier']:.4f} in {metric}")
    return parts


def by_seed(directory: Path) -> dict[int, float]:
    """The task's metric of each seed in the directory of a transfer. Raises BadInput where it is none."""
    try:
        rows = json.loads((directory / "results.json").read_text())
        return {row["seed"]: next(iter(row["eval"].values())) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"--compare_with {directory}: holds no results of lth_scale.transfer; give another") from None


def show(record: Record) -> None:
    """Print the result, where it lies, and how to look at it. On the main process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [report(record), "", f"written to  {record.directory}"]
    if (record.directory / "ticket.safetensors").is_file():
        lines.append(f"the ticket  {record.directory / 'ticket.safetensors'}")
    tracked = sorted([*record.directory.glob("mlflow.json"), *record.directory.glob("seeds/*/mlflow.json")])
    if tracked:
        lines += how_to_open_mlflow(tracked[0])
    print("\n" + "\n".join(lines), flush=True)


def how_to_open_mlflow(path: Path) -> list[str]:
    """The command that serves the store, and the page that shows the curves of the runs in `path` (mlflow.json)."""
    try:
        ids = json.loads(path.read_text())
        store, experiment = str(ids["store"]), ids["experiment"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # a damaged file of notes: what it would lead to is in the journal too
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    if store.startswith("http"):
        return [f"MLflow      {store.rstrip('/')}/{page}"]
    mlflow = os.path.relpath(Path(sys.executable).with_name("mlflow"))
    return [
        f"MLflow      {mlflow} ui --host 127.0.0.1 --backend-store-uri {store}",
        f"            then open http://127.0.0.1:5000/{page}",
    ]


def _render(grid: Table) -> str:
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.strip() for line in capture.get().splitlines() if line.strip())
