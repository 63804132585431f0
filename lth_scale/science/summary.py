"""What a person sees: live bars for rounds and steps, and one table at the end."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import Table, literal, markdown_table
from lth_scale.config.texts import printable, quoted
from lth_scale.tracking.journal import read_notes
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import starved_in

DELTA = (
    0.01  # a point: how much worse still passes for no worse, in the test of `matching.verdicts`
)


def table(rows: list[dict[str, Any]]) -> str:
    """The stages as a Markdown table: number, sparsity, pruned weights, threshold, scores, seconds."""
    metrics, key = list(rows[0]["eval"]), "seed" if "seed" in rows[0] else "round"
    header = [key, "sparsity", "pruned weights", "threshold", *metrics, "seconds"]
    lines = [
        [
            str(row[key]),
            f"{100 * row['sparsity']:.2f} %",
            f"{row['pruned']:,} / {row['prunable']:,}",
            f"{row['threshold']:.3e}",
            *(f"{row['eval'][metric]:.4f}" for metric in metrics),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(Table("", header, lines), align=True)


def comparison(rows: list[dict[str, Any]], controls: list[dict[str, Any]], control: str) -> str:
    """The last tickets beside a control of the same sparsity, by the task's first metric."""
    metric = next(iter(rows[0]["eval"]))
    scores = {row["round"]: row["eval"][metric] for row in rows}
    header = ["sparsity", f"ticket: {metric}", f"{control}: {metric}", "ticket − control"]
    pairs = [(row, scores[row["round"]], row["eval"][metric]) for row in controls]
    lines = [
        [f"{100 * row['sparsity']:.2f} %", f"{own:.4f}", f"{other:.4f}", f"{own - other:+.4f}"]
        for row, own, other in pairs
    ]
    return markdown_table(Table("", header, lines), align=True)


def report(record: RunDirectory) -> str:
    """What a search or a transfer found: its table, and how that compares. The note of a quick look stands first."""
    parts = [f"**{record.arguments.note}**"] if record.arguments.note else []
    if isinstance(record.arguments, Transfer):
        rows = record.rows("seeds")
        return "\n\n".join(
            [*parts, table(rows), *starved(rows), *over_seeds(record, record.arguments)]
        )
    rows, control = record.rows(), record.control
    controls = record.rows(f"controls/{control}")
    parts += [table(rows), *([comparison(rows, controls, control)] if controls else [])]
    return "\n\n".join([*parts, *starved(rows), *starved(controls, f"{control} ")])


def starved(rows: list[dict[str, Any]], of: str = "") -> list[str]:
    """The footer of a table: which of its rows are of a network with a matrix that is all but empty."""
    named = [(key, row) for row in rows for key in ("seed", "round") if key in row]
    lines = [
        f"- {of}{key} {row[key]:02d}: {literal(words)}"
        for key, row in named
        if (words := starved_in(row))
    ]
    return ["Little or nothing passes through some matrices:", "\n".join(lines)] if lines else []


def over_seeds(record: RunDirectory, args: Transfer) -> list[str]:
    """Mean and spread over the seeds, and with --compare_with the verdicts under each rule."""
    from lth_scale.science import matching  # imports scipy: bad input does not wait for it

    found = by_seed(record.directory)
    metric = next(iter(record.rows("seeds")[0]["eval"]))
    parts = [f"{literal(metric)}: {matching.summary([*found.values()]):.4f}"]
    if args.compare_with:
        verdicts = matching.verdicts(found, by_seed(Path(args.compare_with)), DELTA)
        parts.append(
            f"against {literal(args.compare_with)}:\n{matching.describe(verdicts, digits=4)}"
        )
    path = record.directory / "connectivity.json"
    if path.is_file():
        found = files.read_json(path)
        parts.append(
            f"linear path between seeds {found['seeds']}: barrier {found['barrier']:.4f} in {literal(metric)}"
        )
    return parts


def by_seed(directory: Path) -> dict[int, float]:
    """The task's metric of each seed in the directory of a transfer. Raises BadInput where it is none."""
    try:
        rows = files.read_json(directory / "results.json")
        return {row["seed"]: next(iter(row["eval"].values())) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BadInput(
            f"--compare_with {directory}: holds no results of lth_scale.transfer; give another"
        ) from problem


def show(record: RunDirectory) -> None:
    """Print the result, where it lies, and how to look at it. On the main process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [report(record), "", f"written to  {quoted(record.directory)}"]
    if (record.directory / "ticket.safetensors").is_file():
        lines.append(f"the ticket  {quoted(record.directory / 'ticket.safetensors')}")
    tracked = sorted(
        [*record.directory.glob("mlflow.json"), *record.directory.glob("seeds/*/mlflow.json")]
    )
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
