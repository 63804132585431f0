"""A study's results, read from its directory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.checks import parse_rewind_step
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.matching import summary
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.rows import describe_starved

UNSCALED = ("loss", "perplexity")  # metrics that are no fractions

OWN, OTHER = "tickets on their own task", "tickets on other tasks"


CLOSE = 5e-4  # a row's sparsity is that of a cell: patterns and whole weights round
DAMAGE = (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    OverflowError,
)  # what JSON of another shape leads to
THETA = "θ₀ pruned"


@dataclass(frozen=True)
class ConditionResult:
    """One training that the study planned. evals (percent points, the task's metric first) is empty while missing."""

    task: str
    seed: int
    sparsity: float
    control: str
    source: str  # the task itself where the mask is of no search
    rewind: str
    evals: Mapping[str, float]

    @property
    def kind(self) -> str:
        """What the summary counts it as."""
        if self.sparsity == 0:
            return "full network"
        if self.rewind != "0":
            return "rewinding and standard pruning"
        if self.control != "none":
            return CONTROLS[self.control].label
        return OWN if self.source == self.task else OTHER


@dataclass(frozen=True)
class SearchResult:
    """A search that rewinds to θ₀: the sparsity it goes to, and where its tickets are, by sparsity."""

    task: str
    seed: int
    target: float
    tickets: Mapping[float, Path]


@dataclass(frozen=True)
class Group:
    """The cells that differ in nothing but the seed: how many are planned, and the score of each seed that is there."""

    planned: int = 0
    scores: Mapping[int, float] = field(default_factory=dict)

    def __sub__(self, other: "Group") -> float:
        """The difference of the means in points; NaN where either is missing."""
        return summary(self.scores).mean - summary(other.scores).mean

    def __str__(self) -> str:
        text = str(summary(self.scores)) if self.planned else "—"
        return (
            text.replace(")", f" of {self.planned})")
            if 0 < len(self.scores) < self.planned
            else text
        )


@dataclass(frozen=True)
class StudyResults:
    """A study's plan and the results that are there. finished: job → whether it is complete.

    kept: its `mask_facts`, where they were written down and the tickets are not at hand. starved: of each training that
    has a matrix with fewer weights than outputs: the job, the round or seed, and what is said of it.
    """

    name: str
    note: str
    model: str
    tasks: list[str]
    finished: dict[str, bool]
    cells: list[ConditionResult]
    searches: list[SearchResult]
    kept: Mapping[str, Any] | None = None
    starved: Sequence[tuple[str, str, str]] = ()

    def group(
        self,
        task: str,
        sparsity: float = 0.0,
        control: str = "none",
        source: str | None = None,
        rewind: str = "0",
    ) -> Group:
        """What was trained on `task`: the ticket of `source` (default: its own), a control; the dense network at 0."""
        key = (task, sparsity, control, source or task, rewind)
        found = [
            c for c in self.cells if (c.task, c.sparsity, c.control, c.source, c.rewind) == key
        ]
        scores = {c.seed: next(iter(c.evals.values())) for c in found if c.evals}
        return Group(len({c.seed for c in found}), dict(sorted(scores.items())))

    def own(self, task: str, rewound: bool = False) -> list[float]:
        """The sparsities at which the task's own ticket is planned; `rewound`: from another point than θ₀."""
        mine = [
            c
            for c in self.cells
            if c.task == c.source == task and c.control == "none" and c.sparsity
        ]
        return sorted({c.sparsity for c in mine if (c.rewind != "0") == rewound})

    def compared(self, task: str) -> list[float]:
        """Of those, the ones at which a control is planned too; all of them where none is."""
        beside = {c.sparsity for c in self.cells if c.task == task and c.control != "none"}
        return [sparsity for sparsity in self.own(task) if sparsity in beside] or self.own(task)

    def transferred(self) -> list[float]:
        """The sparsities at which a ticket is trained on another task than its own."""
        return sorted({c.sparsity for c in self.cells if c.kind == OTHER})

    def metric(self, task: str) -> str:
        """The name of the task's metric, where a result says it."""
        return next(
            (next(iter(c.evals)) for c in self.cells if c.task == task and c.evals), "score"
        )

    def title(self, text: str) -> str:
        """A figure's title, with the model and the note of the study."""
        return "\n".join(
            filter(None, (f"{text}, {self.model.rstrip('/').split('/')[-1]}", self.note))
        )


def load_results(directory: Path) -> StudyResults:
    """The plan and the results below `directory`. Raises BadInput where study.json or a results.json is damaged."""
    path = directory / "study.json"
    try:
        files.check_regular(path)
    except OSError as problem:
        raise BadInput(
            f"{directory}: no study lies there (study.json is missing: {problem.strerror}); "
            "give the directory of a study"
        ) from None
    plan = read(path)
    try:
        check_plan(plan)
        return study_of(plan, *results(directory, plan), directory)
    except (OSError, *DAMAGE) as problem:
        raise BadInput(
            f"{path}: it or a results.json is damaged ({brief(repr(problem), 1000)}); run the study again"
        ) from problem


def check_plan(plan: Mapping[str, Any]) -> None:
    """Raise one of DAMAGE where a study.json is none of `lth_scale.study`, or its jobs lie outside of its directory."""
    of_type = [
        *((plan[name], str) for name in ("name", "note", "model")),
        *((job[name], str) for job in plan["jobs"] for name in ("id", "kind", "directory")),
        *((cell["seed"], int) for cell in plan["cells"]),
        *((job["flags"]["seed"], int) for job in plan["jobs"] if job["kind"] == "imp"),
    ]
    one_of = [
        *((task, TASKS) for task in plan["tasks"]),
        *((job["flags"]["task"], TASKS) for job in plan["jobs"] if job["kind"] == "imp"),
        *((cell["task"], plan["tasks"]) for cell in plan["cells"]),
        *((cell["source"], (None, *TASKS)) for cell in plan["cells"]),
        *((cell["control"], CONTROLS) for cell in plan["cells"]),
    ]
    fractions = [cell["sparsity"] for cell in plan["cells"]]
    fractions += [job["flags"]["target_sparsity"] for job in plan["jobs"] if job["kind"] == "imp"]
    inside = [Path(job["directory"]) for job in plan["jobs"]]
    points = [cell["rewind"] for cell in plan["cells"] if cell["rewind"] != "none"]
    wrong = [value for value, kind in of_type if type(value) is not kind]
    wrong += [value for value, known in one_of if value not in known]
    wrong += [
        value for value in fractions if not (isinstance(value, int | float) and 0 <= value < 1)
    ]
    wrong += [str(path) for path in inside if path.is_absolute() or ".." in path.parts]
    if wrong:
        raise ValueError(f"{brief(repr(wrong[0]))} is not what lth_scale.study writes")
    for point in points:
        parse_rewind_step(point, steps=None)


def study_of(
    plan: Mapping[str, Any],
    rows: Mapping[str, Any],
    finished: Mapping[str, bool],
    directory: Path,
    kept: Any = None,
) -> StudyResults:
    """A study from its study.json and each job's results.json; its tickets lie below `directory`."""
    places = {job["id"]: directory / job["directory"] for job in plan["jobs"]}
    if not all(isinstance(mine, list) for mine in rows.values()):
        raise TypeError("a results.json holds no list")
    cells = [_condition(spec, rows[spec["job"]]) for spec in plan["cells"]]
    rewound = {spec["job"] for spec in plan["cells"] if spec["rewind"] != "0"}
    plain = [job for job in plan["jobs"] if job["kind"] == "imp" and job["id"] not in rewound]
    searches = [_search(job["flags"], places[job["id"]], rows[job["id"]]) for job in plain]
    about = (plan["name"], plan["note"], plan["model"], plan["tasks"])
    return StudyResults(*about, dict(finished), cells, searches, kept, starved(rows))


def starved(rows: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """Job, round or seed, and words, of each row of the jobs' results with a matrix that is all but empty."""
    named = [
        (job, key, row)
        for job, mine in rows.items()
        for row in mine
        for key in ("seed", "round")
        if key in row
    ]
    return [
        (job, f"{key} {row[key]}", words)
        for job, key, row in named
        if (words := describe_starved(row))
    ]


def results(directory: Path, plan: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Of each job: the rows that are there, and whether it is complete."""
    places = {job["id"]: directory / job["directory"] for job in plan["jobs"]}
    found = {
        job: path for job, place in places.items() if (path := place / "results.json").is_file()
    }
    rows = {job: read(found[job]) if job in found else [] for job in places}
    return rows, {job: (place / "complete").exists() for job, place in places.items()}


def read(path: Path) -> Any:
    """A file of JSON. Raises BadInput."""
    try:
        return files.read_json(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{path}: cannot be read ({problem}); run its job again, or give another directory"
        ) from None


def _condition(spec: Mapping[str, Any], rows: list[dict[str, Any]]) -> ConditionResult:
    """A search has a row a sparsity, anything else a row a seed. Raises ValueError for a score that is not finite."""
    key = "sparsity" if rows and "round" in rows[0] else "seed"
    evals: Mapping[str, float] = next(
        (row["eval"] for row in rows if abs(row[key] - spec[key]) <= CLOSE), {}
    )
    scaled = {
        name: float(value) * (1 if name in UNSCALED else 100) for name, value in evals.items()
    }
    if not all(map(math.isfinite, scaled.values())):
        raise ValueError("a score is no finite number")
    plan = {name: spec[name] for name in ("task", "seed", "sparsity", "control", "rewind")}
    return ConditionResult(**plan, source=spec["source"] or spec["task"], evals=scaled)


def _search(flags: Mapping[str, Any], place: Path, rows: list[dict[str, Any]]) -> SearchResult:
    if not all(0 <= row["round"] <= 9999 for row in rows):
        raise ValueError("a round has no number from 0 to 9999")
    tickets = {
        float(row["sparsity"]): place / "rounds" / f"{row['round']:02d}" / "ticket.safetensors"
        for row in rows
    }
    return SearchResult(flags["task"], flags["seed"], flags["target_sparsity"], tickets)


def percent(fraction: float) -> str:
    """`70 %`."""
    return f"{100 * fraction:.4g} %"
