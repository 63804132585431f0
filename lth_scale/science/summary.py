"""The summary of a search or a transfer: on the terminal, in MLflow and on the model card."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import Table, literal, markdown_table
from lth_scale.config.texts import printable, quoted
from lth_scale.tasks.registry import metric_named
from lth_scale.tracking.mlflow.journal import Progress
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import (
    TICKET_SPARSITY,
    Row,
    has_constant_prediction,
    recorded_trivial,
    sparsity_beside,
    starved_rows,
)

Rows = Sequence[Row]  # of results.json


def report(record: RunDirectory) -> str:
    """The results of a search or a transfer as Markdown, after its note."""
    args = record.arguments
    parts = [f"**{args.note}**"] if args.note else []
    if isinstance(args, Transfer):
        rows = record.seed_rows()
        return "\n\n".join(
            [
                *parts,
                results_table(rows),
                *_trivial_line(rows),
                *_warnings(rows),
                *_untrained(record, rows),
                *_references(rows, args.control),
                *_over_seeds(record, args),
            ]
        )
    rows, controls = record.round_rows(), record.control_rows()
    parts += [results_table(rows), *_trivial_line(rows)]
    if controls:
        parts.append(_control_table(rows, controls, record.control))
    parts += _references(controls, record.control)
    parts += [*_warnings(rows), *_untrained(record, rows)]
    parts += [*_warnings(controls, f"{record.control} ")]
    return "\n\n".join([*parts, *_untrained(record, controls, record.control)])


def results_table(rows: Rows) -> str:
    """Rounds or seeds as a Markdown table: sparsity, pruned weights, threshold, scores, time."""
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


def _trivial_line(rows: Rows) -> list[str]:
    """What trivial predictors score, in one line; none in runs that lack it."""
    predictors = [
        literal(predictor)
        + " "
        + ", ".join(f"{literal(metric)} {score:.4f}" for metric, score in scores.items())
        for predictor, scores in recorded_trivial(rows).items()
    ]
    return [f"Trivial predictors: {'; '.join(predictors)}"] if predictors else []


def _control_table(rows: Rows, controls: Rows, control: str) -> str:
    """A control and the tickets of its sparsities, by the task's primary metric."""
    metric = next(iter(rows[0]["eval"]))
    scores = {row["round"]: row["eval"][metric] for row in rows}
    lines = []
    for row in controls:
        ticket, other = scores[row["round"]], row["eval"][metric]
        numbers = [f"{ticket:.4f}", f"{other:.4f}", f"{ticket - other:+.4f}"]
        lines.append([f"{100 * sparsity_beside(row):.2f} %", *numbers])
    header = ["sparsity", f"ticket: {metric}", f"{control}: {metric}", "ticket − control"]
    return markdown_table(Table("", header, lines), align=True)


def _references(rows: Rows, control: str) -> list[str]:
    """A line per dense network that was trained with the budget of a ticket's search."""
    lines = []
    for row in rows:
        if TICKET_SPARSITY not in row:
            continue
        key = "seed" if "seed" in row else "round"
        beside = f"beside the ticket of {100 * row[TICKET_SPARSITY]:.2f} %; nothing is pruned"
        steps = f"{row['steps']:,} steps in all"
        lines.append(f"- {literal(control)}, {key} {row[key]:02d}, {steps}, {beside}")
        if "restarts" in row:
            lines[-1] += f": {_restarts(row)}"
    return ["A dense network with the budget of the search:", "\n".join(lines)] if lines else []


def _restarts(row: Row) -> str:
    """What the best of several trainings stands for, and the score of each."""
    metric = next(iter(row["eval"]))
    scores = (f"{result['seed']} {result['eval'][metric]:.4f}" for result in row["restarts"])
    return (
        f"the best of {len(row['restarts'])} trainings, chosen on the validation data that it is "
        f"scored on: an optimistic bound. {literal(metric)} by seed: {', '.join(scores)}"
    )


def _warnings(rows: Rows, prefix: str = "") -> list[str]:
    """The networks with nearly empty matrices, and those that predict the same for all rows."""
    lines = [
        f"- {prefix}{key} {number:02d}: {literal(description)}"
        for key, number, description in starved_rows(rows)
    ]
    parts = ["Nearly empty matrices:", "\n".join(lines)] if lines else []
    constant = [
        f"{prefix}{key} {row[key]:02d}"
        for row in rows
        for key in ("round", "seed")
        if key in row and has_constant_prediction(row)
    ]
    if constant:
        parts.append(f"One prediction for all validation rows: {', '.join(constant)}")
    return parts


def _untrained(record: RunDirectory, rows: Rows, control: str = "none") -> list[str]:
    """The networks that are not shown to be better than a trivial predictor, in one line."""
    from lth_scale.science import flaws  # imports scipy

    key = "seed" if isinstance(record.arguments, Transfer) else "round"
    is_one = key == "seed" and len(rows) >= flaws.FEWEST_SEEDS
    names = [
        f"{'' if control == 'none' else f'{control} '}{key} {row[key]:02d}"
        for network in ([rows] if is_one else [[row] for row in rows])
        if flaws.flaw_of_rows(record.directory, network, control) not in ("", flaws.DEAD)
        for row in network
    ]
    text = "Untrained (not shown to be better than the best trivial predictor)"
    return [f"{text}: {', '.join(names)}"] if names else []


def _over_seeds(record: RunDirectory, args: Transfer) -> list[str]:
    """Mean and standard deviation over seeds, verdicts for --compare_with, and connectivity."""
    from lth_scale.science import matching  # imports scipy, which slows bad input

    scores = scores_by_seed(record.directory)
    metric = literal(next(iter(record.seed_rows()[0]["eval"])))
    parts = [f"{metric}: {matching.summary(scores):.4f}"]
    if args.compare_with:
        parts.append(f"compared with {literal(args.compare_with)}{_verdict(record, args)}")
    path = record.directory / "connectivity.json"
    if path.is_file():
        barrier = files.read_json(path)
        parts.append(
            f"linear path between seeds {barrier['seeds']}: "
            f"barrier {barrier['barrier']:.4f} in {metric}"
        )
    return parts


def _verdict(record: RunDirectory, args: Transfer) -> str:
    """The verdict on the transfer and that of --compare_with: a family of one comparison."""
    from lth_scale.science import matching, noninferiority  # they import scipy

    name, other = next(iter(record.seed_rows()[0]["eval"])), Path(args.compare_with or "")
    metric = metric_named(name)
    sub, full = (
        {seed: metric.scale * metric.sign * score for seed, score in scores_by_seed(run).items()}
        for run in (record.directory, other)
    )
    delta = metric.delta if args.delta is None else args.delta
    paired = {*args.seeds} == _planned_seeds(other)
    verdict = noninferiority.verdict(sub, full, delta, paired=paired)
    if flaw := _flaw("the full network", other) or _flaw("the subnetwork", record.directory):
        verdict = noninferiority.without_verdict(verdict, flaw)
    (verdict,) = noninferiority.correct([verdict])
    unit = "percentage points" if metric.scale == 100 else "its own unit"
    unit += ", negated: less is better" if metric.sign < 0 else ""
    return f" ({literal(name)} in {unit}):\n{matching.describe(verdict, sub, full)}"


def _flaw(name: str, transfer: Path) -> str:
    """Why a transfer gets no verdict, or ""."""
    from lth_scale.science import flaws  # imports scipy

    flaw = flaws.flaw_of_rows(transfer, files.read_json(transfer / "results.json"))
    return flaw and f"{name} {flaw}"


def _planned_seeds(directory: Path) -> set[int]:
    """The seeds that a transfer was to train, or those that it has if its flags do not say."""
    try:
        return {*files.read_json(directory / "arguments.json")["seeds"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {*scores_by_seed(directory)}


def scores_by_seed(directory: Path) -> dict[int, float]:
    """The task's primary metric by seed, from the directory of a transfer. Raises BadInput."""
    try:
        rows = files.read_json(directory / "results.json")
        return {row["seed"]: next(iter(row["eval"].values())) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BadInput(
            f"--compare_with {directory}: no results of lth_scale.transfer; "
            "use the --output_dir of one"
        ) from problem


def check_comparable(args: Transfer) -> None:
    """Raise BadInput unless --compare_with is a transfer to the same task."""
    if not args.compare_with:
        return
    other = Path(args.compare_with)
    scores_by_seed(other)
    task = files.read_json(other / "arguments.json")["task"]
    if task != args.task:
        raise BadInput(
            f"--compare_with {other}: a transfer to {task}, but this one is to {args.task}; "
            f"use a transfer to {args.task}"
        )


def show(record: RunDirectory) -> None:
    """Print the results, where they are, and how to view them. On the main process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    home = record.directory
    lines = [report(record), "", f"written to  {quoted(home)}"]
    if (home / "ticket.safetensors").is_file():
        lines.append(f"the ticket  {quoted(home / 'ticket.safetensors')}")
    if tracked := sorted([*home.glob("mlflow.json"), *home.glob("seeds/*/mlflow.json")]):
        lines += how_to_open_mlflow(tracked[0])
    print("\n" + printable("\n".join(lines)), flush=True)


def how_to_open_mlflow(path: Path) -> list[str]:
    """The command that serves the MLflow store of `path` (mlflow.json), and the page of curves.

    Empty if nothing was sent yet or the file is damaged.
    """
    progress = Progress.read(path)
    if not progress or not progress.experiment:
        return []
    store, experiment = printable(progress.store), printable(progress.experiment)
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    page += "&viewStateShareKey=curves"
    if store.startswith("http"):
        return [f"MLflow      {store.rstrip('/')}/{page}"]
    mlflow = quoted(os.path.relpath(Path(sys.executable).with_name("mlflow")))
    return [
        f"MLflow      {mlflow} ui --host 127.0.0.1 --backend-store-uri {shlex.quote(store)}",
        f"            then open http://127.0.0.1:5000/{page}",
    ]
