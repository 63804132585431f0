"""A study's results as one tidy table, read from its directory."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from lth_scale.config import files
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.study_record import (
    ConditionRecord,
    JobRecord,
    SearchFlags,
    StudyRecord,
    parse_record,
    read_json,
)
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.rows import describe_starved

# Metrics that are not fractions; all others are multiplied by 100.
UNSCALED = ("loss", "perplexity")
OWN, OTHER = "tickets on their own task", "tickets on other tasks"
# Largest difference between a planned and a reached sparsity: whole weights and patterns round.
CLOSE = 5e-4
# What unexpected JSON raises.
DAMAGE = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
# What distinguishes two trainings of a study.
CONDITION = ("task", "sparsity", "control", "source", "rewind", "seed")
COLUMNS = ("network", *CONDITION, "metric", "value", "primary")

Row = dict[str, Any]  # of a results.json
Rows = Mapping[str, list[Row]]  # by job


@dataclass(frozen=True)
class SearchResult:
    """A search that rewinds to θ₀: its target sparsity, and its tickets by sparsity."""

    task: str
    seed: int
    target: float
    tickets: Mapping[float, Path]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """The plan of a study and the results that are present.

    table: one row per condition and metric, with COLUMNS; values are percent points, except for
    UNSCALED metrics. `primary` marks the metric that networks are compared by; it is NaN for a
    training that is missing. finished: by job. mask_facts: saved earlier, if the tickets are not
    available. starved: job, round or seed, and description of each network with a matrix that
    keeps fewer weights than it has outputs.
    """

    name: str
    note: str
    model: str
    tasks: list[str]
    finished: dict[str, bool]
    table: pandas.DataFrame
    searches: list[SearchResult]
    mask_facts: Mapping[str, Any] | None = None
    starved: Sequence[tuple[str, str, str]] = ()

    @functools.cached_property
    def conditions(self) -> pandas.DataFrame:
        """One row per planned training, with its primary metric."""
        return self.table[self.table.primary]

    @functools.cached_property
    def _scores(self) -> pandas.Series:
        return self.conditions.groupby([*CONDITION]).value.last()

    def scores(
        self,
        task: str,
        sparsity: float = 0.0,
        control: str = "none",
        source: str | None = None,
        rewind: str = "0",
    ) -> pandas.Series:
        """Scores of one network by seed; NaN for a missing seed, empty if it was not planned.

        source: the task of the ticket (default: `task`). At sparsity 0 it is the dense network.
        """
        try:
            return self._scores.loc[task, sparsity, control, source or task, rewind]
        except KeyError:
            return pandas.Series(dtype=float)

    def own_tickets(self, task: str) -> pandas.DataFrame:
        """The conditions that train a task's own ticket."""
        rows = self.conditions
        own = (rows.task == task) & (rows.source == task) & (rows.control == "none")
        return rows[own & (rows.sparsity > 0)]

    def sparsities(self, task: str, rewound: bool = False) -> list[float]:
        """Sparsities of a task's own tickets; `rewound`: of those that do not rewind to θ₀."""
        own = self.own_tickets(task)
        return sorted(own[(own.rewind != "0") == rewound].sparsity.unique().tolist())

    def control_sparsities(self, task: str) -> list[float]:
        """Sparsities of a task's tickets that have a control; all of them if there is none."""
        rows = self.conditions
        controls = {*rows[(rows.task == task) & (rows.control != "none")].sparsity}
        tickets = self.sparsities(task)
        return [sparsity for sparsity in tickets if sparsity in controls] or tickets

    def transfer_sparsities(self) -> list[float]:
        """Sparsities at which a ticket is trained on a task other than its own."""
        rows = self.conditions
        return sorted(rows[rows.network == OTHER].sparsity.unique().tolist())

    def metric(self, task: str) -> str:
        """The name of the task's primary metric."""
        rows = self.conditions
        return next(iter(rows[(rows.task == task) & rows.value.notna()].metric), "score")

    def title(self, text: str) -> str:
        """The title of a figure, with the model and the study's note."""
        lines = (f"{text}, {self.model.rstrip('/').split('/')[-1]}", self.note)
        return "\n".join(filter(None, lines))


def load_results(directory: Path) -> StudyResults:
    """Read study.json and the results of its jobs. Raises BadInput if one of them is damaged."""
    path = directory / "study.json"
    try:
        files.check_regular(path)
    except OSError as problem:
        raise BadInput(
            f"{directory}: not a study: study.json is missing ({problem.strerror}); "
            "specify the --output_dir of lth_scale.study"
        ) from None
    plan = read_json(path)
    try:
        record = parse_record(plan)
        return study_results(record, *read_jobs(directory, record.jobs), directory)
    except BadInput:
        raise
    except (OSError, *DAMAGE) as problem:
        reason = str(problem) if isinstance(problem, ValueError) else repr(problem)
        raise BadInput(
            f"{path}: this file or a results.json is damaged ({brief(reason, 1000)}); "
            "run the study again"
        ) from problem


def read_jobs(directory: Path, jobs: Iterable[JobRecord]) -> tuple[Rows, dict[str, bool]]:
    """The rows of each job's results.json, empty if it is missing; and whether it is complete."""
    rows: dict[str, list[Row]] = {}
    finished = {}
    for job in jobs:
        path = directory / job.directory / "results.json"
        content: Any = read_json(path) if path.is_file() else []
        if not isinstance(content, list):
            raise TypeError(f"{path}: not a list")
        rows[job.id] = content
        finished[job.id] = path.with_name("complete").exists()
    return rows, finished


def study_results(
    record: StudyRecord,
    rows: Rows,
    finished: Mapping[str, bool],
    directory: Path,
    mask_facts: Mapping[str, Any] | None = None,
) -> StudyResults:
    """Combine the plan of a study with the rows of its jobs; tickets lie below `directory`."""
    rewound = {condition.job for condition in record.cells if condition.rewind != "0"}
    searches = [
        _search(job, directory, rows[job.id])
        for job in record.jobs
        if job.kind == "imp" and job.id not in rewound
    ]
    table = pandas.DataFrame(
        [row for condition in record.cells for row in _tidy(condition, rows[condition.job])],
        columns=[*COLUMNS],
    ).astype({"sparsity": float, "value": float, "primary": bool})
    about = (record.name, record.note, record.model, record.tasks)
    return StudyResults(*about, dict(finished), table, searches, mask_facts, _starved(rows))


def _tidy(condition: ConditionRecord, rows: list[Row]) -> list[tuple[Any, ...]]:
    """Rows of the table for one condition: one per metric, the primary one first.

    A search has one row of results per sparsity, every other job one per seed. Raises ValueError
    for a score that is not finite.
    """
    of_search = rows and "round" in rows[0]
    key, planned = ("sparsity", condition.sparsity) if of_search else ("seed", condition.seed)
    matching = (row["eval"] for row in rows if abs(row[key] - planned) <= CLOSE)
    metrics: Mapping[str, Any] = next(matching, {})
    scores = {name: float(x) * (1 if name in UNSCALED else 100) for name, x in metrics.items()}
    if not all(map(math.isfinite, scores.values())):
        raise ValueError("a score is not finite")
    source = condition.source or condition.task
    about = (
        *(_network(condition, source), condition.task, condition.sparsity),
        *(condition.control, source, condition.rewind, condition.seed),
    )
    present = scores or {TASKS[condition.task].metric: math.nan}
    return [(*about, name, x, i == 0) for i, (name, x) in enumerate(present.items())]


def _network(condition: ConditionRecord, source: str) -> str:
    """What the summary of the report counts a condition as."""
    if condition.sparsity == 0:
        return "full network"
    if condition.rewind != "0":
        return "rewinding and standard pruning"
    if condition.control != "none":
        return CONTROLS[condition.control].label
    return OWN if source == condition.task else OTHER


def _search(job: JobRecord, directory: Path, rows: list[Row]) -> SearchResult:
    if not all(0 <= row["round"] <= 9999 for row in rows):
        raise ValueError("the number of a round is not between 0 and 9999")
    rounds = directory / job.directory / "rounds"
    tickets = {
        float(row["sparsity"]): rounds / f"{row['round']:02d}" / "ticket.safetensors"
        for row in rows
    }
    flags = SearchFlags.model_validate(job.flags)
    return SearchResult(flags.task, flags.seed, flags.target_sparsity, tickets)


def _starved(rows: Rows) -> list[tuple[str, str, str]]:
    """Job, round or seed, and description of each network with a starved matrix."""
    return [
        (job, f"{key} {row[key]}", description)
        for job, results in rows.items()
        for row in results
        for key in ("seed", "round")
        if key in row and (description := describe_starved(row))
    ]
