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

from lth_scale.record import Record


class Bars:
    """Progress on stderr: one bar over the rounds, one over the steps of the round; plain lines in a log file."""

    def __init__(self, rounds: int, done: int):
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.rounds = self.progress.add_task("rounds", total=rounds, completed=done)
        self.steps = self.progress.add_task("steps", total=None)
        self.progress.start()

    def start(self, k: int, sparsity: float, control: str, steps: int) -> None:
        """A round begins."""
        label = f"  {round_name(k, control)} · {100 * sparsity:.4g} %"
        self.progress.reset(self.steps, total=steps, description=label)

    def step(self, step: int, loss: float | None) -> None:
        """A step is done."""
        self.progress.update(self.steps, completed=step)

    def end(self, row: Mapping[str, Any], control: str) -> None:
        """A round is done."""
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in row["eval"].items())
        label = f"{round_name(row['round'], control)} · {100 * row['sparsity']:.4g} %"
        self.console.print(f"{label}: {scores}, {row['seconds']:.1f} s", highlight=False)
        self.progress.advance(self.rounds)

    def finish(self, pictures: Mapping[str, bytes], table: str) -> None:
        """The search is done."""
        self.progress.stop()


def round_name(k: int, control: str = "none") -> str:
    """`round 03`, or the control's name and number."""
    return f"{'round' if control == 'none' else control} {k:02d}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rounds as a Markdown table: round, sparsity, pruned weights, threshold, scores, seconds."""
    metrics = list(rows[0]["eval"])
    grid = Table(box=box.MARKDOWN)
    for title in ("round", "sparsity", "pruned weights", "threshold", *metrics, "seconds"):
        grid.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        scores = [f"{row['eval'][metric]:.4f}" for metric in metrics]
        pruned = f"{row['pruned']:,} / {row['prunable']:,}"
        grid.add_row(
            str(row["round"]),
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
    """The table of the rounds and, where one was trained, the comparison with the control."""
    rows, control = record.rows(), record.arguments.control
    controls = record.rows(control) if control != "none" else []
    return "\n\n".join([table(rows), *([comparison(rows, controls, control)] if controls else [])])


def show(record: Record) -> None:
    """Print the result, where it lies, and how to look at it. On the main process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [report(record), "", f"written to  {record.directory}"]
    lines.append(f"the ticket  {record.directory / 'ticket.safetensors'}")
    if (record.directory / "mlflow.json").is_file():
        lines += how_to_open_mlflow(record)
    print("\n" + "\n".join(lines), flush=True)


def how_to_open_mlflow(record: Record) -> list[str]:
    """The command that serves the store, and the page that shows this search's curves."""
    ids = json.loads((record.directory / "mlflow.json").read_text())
    page = f"#/experiments/{ids['experiment']}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    if ids["store"].startswith("http"):
        return [f"MLflow      {ids['store'].rstrip('/')}/{page}"]
    mlflow = os.path.relpath(Path(sys.executable).with_name("mlflow"))
    return [
        f"MLflow      {mlflow} ui --host 127.0.0.1 --backend-store-uri {ids['store']}",
        f"            then open http://127.0.0.1:5000/{page}",
    ]


def _render(grid: Table) -> str:
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.strip() for line in capture.get().splitlines() if line.strip())
