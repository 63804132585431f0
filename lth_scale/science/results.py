"""A study's results as one tidy table, read from its directory, and scores as text."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas

from lth_scale.config import directories, files
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.matching import Summary, summary
from lth_scale.science.study_record import (
    ConditionRecord,
    JobRecord,
    StudyRecord,
    parse_record,
    read_json,
)
from lth_scale.tasks.registry import TASKS, adopt_metric, best_trivial, metric_named
from lth_scale.tracking.stages import (
    Row,
    has_constant_prediction,
    recorded_training_rows,
    recorded_trivial,
    stage_of,
    starved_rows,
)

OWN, OTHER = "tickets on their own task", "tickets on other tasks"
REWOUND = "rewinding and standard pruning"
REWOUND_OTHER = "rewound and standard-pruned tickets on other tasks"
# Largest difference between a planned and a reached sparsity, due to whole weights and patterns.
CLOSE = 5e-4
# The exceptions that unexpected JSON raises.
DAMAGE = (KeyError, TypeError, AttributeError, ValueError, OverflowError)

# The last one: of a saved study, which does not say why. A running job runs on this machine.
JobState = Literal["finished", "running", "failed or interrupted", "not started", "not finished"]
STATES: tuple[JobState, ...] = get_args(JobState)
NOT_PLANNED = pandas.Series(dtype=float)  # scores of a network that the study does not train
Rows = Mapping[str, list[Row]]  # by job


class Network(NamedTuple):
    """A network that a study trains, with several seeds.

    Sparsity 0 is the full network. source: the task of its ticket, "" for `task` itself; rewind:
    the rewind point of the search that found the ticket.
    """

    task: str
    sparsity: float = 0.0
    control: str = "none"
    source: str = ""
    rewind: str = "0"

    @property
    def key(self) -> "Network":
        """The network with its source spelt out, as in the columns of a table."""
        return self._replace(source=self.source or self.task)

    @property
    def full(self) -> "Network":
        """The full network of the same task."""
        return Network(self.task)


COLUMNS = ("network", *Network._fields, "seed", "metric", "value", "primary", "constant")


@dataclass(frozen=True)
class SearchResult:
    """A search that rewinds to θ₀: its target sparsity, and its tickets by sparsity."""

    task: str
    seed: int
    target: float
    tickets: Mapping[float, Path]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """The plan of a study and its results so far.

    states: by job. table: one row per condition and metric, with COLUMNS; values are in the unit
    printed (`Metric.scale`), mostly percentage points. `primary` marks the metric by which networks
    are compared; its value is NaN for a missing training. `constant`: the network gave one
    prediction for all validation rows. mask_facts: as saved, if the tickets are not available.
    starved: job, round or seed, and description of each network with a nearly empty matrix.
    trivial: by task, predictor and metric, the scores of trivial predictors, as fractions.
    training_rows: by task, the encoded rows that its search trained on, if recorded. stages: the
    directory of each finished training. example_facts: as saved, if these are not available.
    """

    name: str
    note: str
    model: str
    tasks: list[str]
    states: Mapping[str, JobState]
    table: pandas.DataFrame
    searches: list[SearchResult]
    mask_facts: Mapping[str, Any] | None = None
    starved: Sequence[tuple[str, str, str]] = ()
    trivial: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    training_rows: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[tuple[Network, int], Path] = field(default_factory=dict)
    example_facts: Mapping[str, Any] | None = None

    @property
    def unfinished(self) -> dict[str, list[str]]:
        """The jobs that are not finished, by state."""
        by_state = {
            state: [job for job, x in self.states.items() if x == state] for state in STATES
        }
        return {state: jobs for state, jobs in by_state.items() if jobs and state != "finished"}

    @functools.cached_property
    def conditions(self) -> pandas.DataFrame:
        """One row per planned training, with its primary metric."""
        return self.table[self.table.primary]

    @functools.cached_property
    def _finished(self) -> pandas.DataFrame:
        return self.conditions[self.conditions.value.notna()]

    @functools.cached_property
    def _scores(self) -> dict[Network, pandas.Series]:
        names = [*Network._fields]
        by_seed = self.conditions.groupby([*names, "seed"]).value.last()
        by_network = by_seed.reset_index("seed").groupby(names, sort=False)
        return {Network(*key): rows.set_index("seed").value for key, rows in by_network}

    @functools.cached_property
    def _constant(self) -> set[Network]:
        """The networks whose finished trainings are all constant."""
        all_constant = self._finished.groupby([*Network._fields]).constant.all()
        return {Network(*key) for key in all_constant.index[all_constant]}

    @functools.cached_property
    def _metrics(self) -> dict[str, str]:
        return self._finished.groupby("task").metric.first().to_dict()

    def scores(self, network: Network) -> pandas.Series:
        """Scores of a network by seed, named after their metric; NaN for a missing seed.

        Empty if the network was not planned.
        """
        return self._scores.get(network.key, NOT_PLANNED).rename(self.metric(network.task))

    def is_constant(self, network: Network) -> bool:
        """True if every finished training of a network gave one prediction for all rows."""
        return network.key in self._constant

    def baseline(self, task: str, metric: str = "") -> tuple[str, float] | None:
        """The best trivial predictor of a task and its score in the unit printed.

        metric: the primary one by default. None if no run recorded one, as before version 0.2.0.
        """
        return best_trivial(self.trivial.get(task, {}), metric or self.metric(task))

    def trivial_text(self, task: str, metric: str = "") -> str:
        """The best trivial predictor's score, by default of the primary metric; `—` if unknown."""
        best, digits = self.baseline(task, metric), metric_named(metric or self.metric(task)).digits
        return f"{best[1]:.{digits}f}" if best else "—"

    def sparsities(self, task: str, rewound: bool = False) -> list[float]:
        """Sparsities of a task's own tickets; `rewound`: of those that do not rewind to θ₀."""
        rows = self.conditions
        own = (rows.task == task) & (rows.source == task) & (rows.control == "none")
        own &= (rows.sparsity > 0) & ((rows.rewind != "0") == rewound)
        return sorted(rows[own].sparsity.unique().tolist())

    def control_sparsities(self, task: str) -> list[float]:
        """Sparsities of a task's tickets that have a control; all of them if none has."""
        rows = self.conditions
        controls = {*rows[(rows.task == task) & (rows.control != "none")].sparsity}
        tickets = self.sparsities(task)
        return [sparsity for sparsity in tickets if sparsity in controls] or tickets

    def transfer_sparsities(self) -> list[float]:
        """Sparsities at which a ticket is trained on another task."""
        rows = self.conditions
        return sorted(rows[rows.network == OTHER].sparsity.unique().tolist())

    def rewound_transfers(self) -> list[Network]:
        """Tickets that are trained on another task with weights other than θ₀, in no order."""
        rows = self.conditions[self.conditions.network == REWOUND_OTHER]
        networks = rows[[*Network._fields]].drop_duplicates()
        return [Network(*values) for values in networks.itertuples(index=False, name=None)]

    def metric(self, task: str) -> str:
        """The name of the task's primary metric."""
        return self._metrics.get(task) or TASKS[task].metric

    def title(self, text: str) -> str:
        """The title of a figure, with the model and the study's note."""
        title = f"{text}, {self.model.rstrip('/').split('/')[-1]}"
        return f"{title}\n{self.note}" if self.note else title


def load_results(directory: Path) -> StudyResults:
    """Read study.json and the results of its jobs. Raises BadInput if a file is damaged."""
    path = directory / "study.json"
    try:
        files.check_regular(path)
    except OSError as problem:
        raise BadInput(
            f"{directory}: not a study: study.json is missing ({problem.strerror}); "
            "use the --output_dir of lth_scale.study"
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


def read_jobs(directory: Path, jobs: Iterable[JobRecord]) -> tuple[Rows, dict[str, JobState]]:
    """By job, the rows of its results.json, empty if missing; and its state.

    The study may be running: the state is read first, so that a finished job has all its rows.
    """
    rows: dict[str, list[Row]] = {}
    states = {}
    for job in jobs:
        home = directory / job.directory
        states[job.id] = job_state(home)
        rows[job.id] = _read_rows(home / "results.json")
    return rows, states


def job_state(home: Path) -> JobState:
    """The state of a job, from its directory and the lock and log beside it."""
    if (home / "complete").exists():
        return "finished"
    if directories.is_locked(home.with_name(f"{home.name}.lock")):
        return "running"
    begun = home.exists() or home.with_name(f"{home.name}.log").exists()
    return "failed or interrupted" if begun else "not started"


def _read_rows(path: Path) -> list[Row]:
    """The rows of a results.json; none if it is missing or vanishes. Raises BadInput, TypeError."""
    try:
        content: Any = read_json(path) if path.is_file() else []
    except BadInput:
        if path.is_file():
            raise
        content = []  # the job was begun again meanwhile
    if not isinstance(content, list):
        raise TypeError(f"{path}: not a list")
    return content


def study_results(
    record: StudyRecord,
    rows: Rows,
    states: Mapping[str, JobState],
    directory: Path,
    mask_facts: Mapping[str, Any] | None = None,
    example_facts: Mapping[str, Any] | None = None,
) -> StudyResults:
    """Combine the plan of a study in `directory` with the rows of its jobs."""
    for job in record.jobs:
        adopt_metric(job.flags)
    searches = [
        _search(job, directory, rows[job.id])
        for job in record.jobs
        if job.kind == "imp" and not _is_rewound(job)
    ]
    table = pandas.DataFrame(
        [row for condition in record.cells for row in _tidy(condition, rows[condition.job])],
        columns=[*COLUMNS],
    ).astype({"sparsity": float, "value": float, "primary": bool, "constant": bool})
    about = (record.name, record.note, record.model, record.tasks)
    return StudyResults(
        *about,
        states=states,
        table=table,
        searches=searches,
        mask_facts=mask_facts,
        stages=_stages(record, rows, directory),
        example_facts=example_facts,
        **_recorded(record, rows),
    )


def _recorded(record: StudyRecord, rows: Rows) -> dict[str, Any]:
    """What the rows say besides scores: `starved`, `trivial` and `training_rows`."""
    starved = [
        (job, f"{key} {number}", description)
        for job, results in rows.items()
        for key, number, description in starved_rows(results)
    ]
    trivial = {
        condition.task: recorded
        for condition in record.cells
        if (recorded := recorded_trivial(rows[condition.job]))
    }
    training_rows = {
        job.task_name: count
        for job in record.jobs
        if job.kind == "imp" and (count := recorded_training_rows(rows[job.id]))
    }
    return {"starved": starved, "trivial": trivial, "training_rows": training_rows}


def _stages(record: StudyRecord, rows: Rows, directory: Path) -> dict[tuple[Network, int], Path]:
    """The directory of each finished training."""
    directories = {job.id: directory / job.directory for job in record.jobs}
    return {
        (_network(condition), condition.seed): directories[condition.job] / stage_of(row).path
        for condition in record.cells
        if (row := _row_of(condition, rows[condition.job]))
    }


def _tidy(condition: ConditionRecord, rows: list[Row]) -> list[tuple[Any, ...]]:
    """One condition's rows of the table: one per metric, the primary one first.

    Raises ValueError for a score that is not finite.
    """
    found = _row_of(condition, rows) or {"eval": {}}
    metrics, constant = found["eval"], has_constant_prediction(found)
    scores = {name: float(x) * metric_named(name).scale for name, x in metrics.items()}
    if not all(map(math.isfinite, scores.values())):
        raise ValueError("a score is not finite")
    scores = scores or {TASKS[condition.task].metric: math.nan}
    network = _network(condition)
    about = (_label(network), *network, condition.seed)
    return [(*about, name, x, i == 0, constant) for i, (name, x) in enumerate(scores.items())]


def _row_of(condition: ConditionRecord, rows: list[Row]) -> Row | None:
    """The row of a condition among those of its job, if it is finished."""
    # A search has one row per sparsity, every other job one per seed.
    key = "sparsity" if rows and "round" in rows[0] else "seed"
    planned = getattr(condition, key)
    return next((row for row in rows if abs(row[key] - planned) <= CLOSE), None)


def _network(condition: ConditionRecord) -> Network:
    source = condition.source or condition.task
    return Network(**condition.model_dump(include={*Network._fields}) | {"source": source})


def _label(network: Network) -> str:
    if network.sparsity == 0:
        return "full network"
    if network.rewind != "0":
        return REWOUND if network.source == network.task else REWOUND_OTHER
    if network.control != "none":
        return CONTROLS[network.control].label
    return OWN if network.source == network.task else OTHER


def _is_rewound(job: JobRecord) -> bool:
    """True for a search that does not rewind to θ₀."""
    return job.flags.get("rewind") == "none" or job.flags.get("rewind_step", "0") != "0"


def _search(job: JobRecord, directory: Path, rows: list[Row]) -> SearchResult:
    if not all(0 <= row["round"] <= 9999 for row in rows):
        raise ValueError("the number of a round is not between 0 and 9999")
    rounds = directory / job.directory / "rounds"
    tickets = {
        float(row["sparsity"]): rounds / f"{row['round']:02d}" / "ticket.safetensors"
        for row in rows
    }
    flags: Any = job.flags  # checked by JobRecord
    return SearchResult(job.task_name, flags["seed"], flags["target_sparsity"], tickets)


def percent(fraction: float) -> str:
    """`70 %`."""
    return f"{100 * fraction:.4g} %"


def summarize(scores: pandas.Series) -> Summary:
    """The summary of the scores that are not missing."""
    return summary(scores.dropna().to_list())


def score_text(scores: pandas.Series) -> str:
    """`82.6 ± 0.2 (n = 3)`, or `(n = 2 of 3)` if a seed is missing; `—` if none was planned.

    scores: named after their metric, which has the number of decimals.
    """
    if scores.empty:
        return "—"
    digits, n = metric_named(str(scores.name)).digits, scores.count()
    text = format(summarize(scores), f".{digits}f")
    return text.replace(")", f" of {len(scores)})") if 0 < n < len(scores) else text


def short_score(scores: pandas.Series, n: int) -> str:
    """`82.6 ± 0.2`, with its own n unless it has `n` scores; `—` if none was planned."""
    text = score_text(scores)
    return text.removesuffix(f" (n = {n})") if scores.count() == n else text


def mean_difference(scores: pandas.Series, reference: pandas.Series) -> float:
    """The difference of the means; NaN if either is missing."""
    return summarize(scores).mean - summarize(reference).mean
