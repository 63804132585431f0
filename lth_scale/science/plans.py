"""A study as jobs, each once, and the conditions they serve."""

import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from lth_scale.config import arguments, checks, parsers, resolution
from lth_scale.config.arguments import OTHER_ALLOWED, QUICK_LOOK
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import as_words
from lth_scale.pruning.registries import CONTROLS, sparsities
from lth_scale.science.study_file import KINDS, MOST_TRAININGS, Flags, StudySpec
from lth_scale.tasks.registry import TASKS


@dataclass(frozen=True)
class Job:
    """One command. `--ticket` and `--dense` lie below the study's directory, as the jobs they come from."""

    id: str
    kind: str
    flags: Flags
    needs: tuple[str, ...] = ()

    @functools.cached_property
    def args(self) -> Any:
        """The Arguments or Transfer that the command will resolve. Raises BadInput."""
        try:
            given = vars(parser_of(self.kind).parse_args(as_argv(self.flags)))
            late = {
                name: given.pop(name)
                for name in ("ticket", "dense", "control")
                if self.needs and name in given
            }
            args = replace(resolution.resolve(given, KINDS[self.kind]), **late)  # not files yet
            if self.kind == "imp":
                checks.check_search(args)
        except BadInput as problem:
            raise BadInput(f"{self.id}: {problem}") from None
        return args

    @functools.cached_property
    def ladder(self) -> list[float]:
        """The sparsities of a search's rounds."""
        return sparsities(self.args.schedule, self.args.target_sparsity, self.args.prune_rate)


@functools.cache
def parser_of(kind: str) -> parsers.OneLineParser:
    """The parser of a kind of job."""
    return parsers.build_parser("", "", KINDS[kind])


def as_argv(flags: Flags) -> list[str]:
    """The flags as a command line; true is a flag without a value, false is left out."""
    return [
        word
        for name, value in flags.items()
        if value is not False
        for word in as_words(name, value)
    ]


def difference(old: Flags, new: Flags, but: Collection[str]) -> str:
    """The first flag that differs, with both values, or nothing."""
    names = (name for name in {**old, **new} if name not in but)
    differ = (name for name in names if not arguments.is_same(name, old.get(name), new.get(name)))
    return next((f"--{name} {old.get(name)} and {new.get(name)}" for name in differ), "")


@dataclass(frozen=True)
class Condition:
    """One number of the report. Sparsity 0 is the dense network; no source: the mask is of no search."""

    task: str
    seed: int
    sparsity: float = 0.0
    control: str = "none"
    source: str | None = None
    rewind: str = "0"


@dataclass
class Plan:
    """The jobs of a study, each after those it needs, and the cells, each with the job that fills it."""

    studies: list[StudySpec]
    jobs: dict[str, Job] = field(default_factory=dict)
    cells: dict[Condition, str] = field(default_factory=dict)

    def add(self, job: Job) -> str:
        """Take in a job, or merge it with the same one: a search goes to the largest sparsity that is wanted."""
        old, new = self.jobs.get(job.id, job).flags, job.flags
        grown: Flags = {
            name: max(old[name], new[name]) for name in ("target_sparsity",) if name in new
        }
        if kept := dict.fromkeys(
            checks.points(old.get("keep_theta")) + checks.points(new.get("keep_theta"))
        ):
            grown["keep_theta"] = ",".join(kept)
        if differ := difference(old, new, but=grown):
            raise BadInput(f"{job.id}: two studies want it, with {differ}; use one value")
        self.jobs[job.id] = replace(job, flags={**new, **grown})
        return job.id

    def rung(self, search: str, sparsity: float) -> int:
        """The round of a search that trains at `sparsity`. Raises BadInput."""
        ladder = self.jobs[search].ladder
        for k, reached in enumerate(ladder):
            if abs(reached - sparsity) < 1e-9:
                return k
        there = ", ".join(f"{reached:g}" for reached in ladder)
        raise BadInput(
            f"sparsity {sparsity}: {search} has no such round; take of {there}, or another prune_rate"
        )


def plan(studies: list[StudySpec]) -> Plan:
    """The jobs and cells of studies, those that are the same merged, every job's flags checked. Raises BadInput."""
    made = Plan(studies)
    if (count := sum(map(trainings, studies))) > MOST_TRAININGS:
        raise BadInput(
            f"{studies[0].file}: it comes to {count:,} trainings; give at most {MOST_TRAININGS:,} in a study"
        )
    try:
        for study in studies:
            add_searches(made, study)
        for study in studies:
            add_grid(made, study)
            add_transfers(made, study)
        assert all(job.args for job in made.jobs.values())
    except BadInput as problem:
        raise BadInput(f"{studies[0].file}: {problem}") from None
    return made


def trainings(study: StudySpec) -> int:
    """How many cells and rewound searches a study has at most, those that it shares with others included."""
    keys, what = study.keys, study.keys["transfer"]
    a_seed = 0
    for task, found in keys["sparsities"].items():
        a_seed += (
            1 + len(found) + len(keys["controls"]) * len(keys["control_sparsities"].get(task, ()))
        )
        a_seed += len(keys["rewind"]) * (1 + len(keys["rewind_sparsities"].get(task, ())))
    across = 1 + len(what["sources"]) * (1 + len(what["controls"]))
    return (
        len(keys["seeds"]) * a_seed
        + len(what["targets"]) * len(what["seeds"]) * across
        + len(what["sources"])
    )


def search_id(task: str, seed: int, point: str = "0") -> str:
    """The name of a search's job."""
    return f"search-{task}-seed{seed}" + (f"-rewind{point}" if point != "0" else "")


def add_searches(made: Plan, study: StudySpec) -> None:
    """The searches of a study's grid and of its transfers' sources."""
    keys, what = study.keys, study.keys["transfer"]
    for task, seed in product(keys["sparsities"], keys["seeds"]):
        rewound = keys["rewind_sparsities"].get(task, [])
        points = keys["rewind"] if rewound else []
        kept = ",".join(point for point in points if point != "none")
        goals = keys["sparsities"][task] + keys["control_sparsities"].get(task, [])
        add_search(made, study, task, seed, goals, **({"keep_theta": kept} if kept else {}))
        for point in points:
            plain = {"rewind_step": point, "dense": f"jobs/{search_id(task, seed)}"}
            add_search(
                made,
                study,
                task,
                seed,
                rewound,
                **({"rewind": "none"} if point == "none" else plain),
            )
    for task in what["sources"]:
        add_search(made, study, task, what["source_seed"], [what["sparsity"]])


def add_search(
    made: Plan, study: StudySpec, task: str, seed: int, goals: list[float], **more: str
) -> None:
    """A search to the largest of `goals`; one that rewinds to θᵢ takes the dense network and θᵢ of the plain one."""
    flags = {
        **study.flags_of(task, "imp"),
        "seed": seed,
        "control": "none",
        "target_sparsity": max(goals),
        **more,
    }
    point = more.get("rewind_step", more.get("rewind", "0"))
    needs = (search_id(task, seed),) if "dense" in more else ()
    made.add(Job(search_id(task, seed, point), "imp", flags, needs))


def add_grid(made: Plan, study: StudySpec) -> None:
    """The cells of a study's tasks: dense, found, rewound, and the controls' jobs."""
    keys = study.keys
    for task, seed in product(keys["sparsities"], keys["seeds"]):
        add_dense(made, study, task, seed)
        for sparsity in keys["sparsities"][task]:
            add_cell(made, study, Condition(task, seed, sparsity, source=task), seed)
        for control, sparsity in product(
            keys["controls"], keys["control_sparsities"].get(task, [])
        ):
            add_cell(made, study, Condition(task, seed, sparsity, control, task), seed)
        for point, sparsity in product(keys["rewind"], keys["rewind_sparsities"].get(task, [])):
            made.rung(search_id(task, seed, point), sparsity)
            made.cells[Condition(task, seed, sparsity, source=task, rewind=point)] = search_id(
                task, seed, point
            )


def add_transfers(made: Plan, study: StudySpec) -> None:
    """Every source's ticket, and every control, on every target; a target with a search of that seed takes its own."""
    what = study.keys["transfer"]
    for target, seed in product(what["targets"], what["seeds"]):
        add_dense(made, study, target, seed)
        for control, source in product(["none", *what["controls"]], what["sources"]):
            own = made.jobs.get(search_id(target, seed)) if source == target else None
            mine = own is not None and own.flags["target_sparsity"] >= what["sparsity"]
            cell = Condition(target, seed, what["sparsity"], control, source)
            add_cell(made, study, cell, seed if mine else what["source_seed"])


def add_dense(made: Plan, study: StudySpec, task: str, seed: int) -> None:
    """The dense network: round 0 of the search of that task and seed, or where there is none a job of its own."""
    job = search_id(task, seed)
    if job not in made.jobs:
        job = made.add(
            Job(
                f"dense-{task}-seed{seed}",
                "transfer",
                study.flags_of(task, "transfer") | {"seeds": seed},
            )
        )
    made.cells[Condition(task, seed)] = job


def add_cell(made: Plan, study: StudySpec, cell: Condition, source_seed: int) -> None:
    """A cell above sparsity 0: a round of the search whose ticket it is, or a transfer."""
    flags = {**study.flags_of(cell.task, "transfer"), "seeds": cell.seed, "control": cell.control}
    here = f"transfer-{cell.task}-seed{cell.seed}"
    what = (
        f"{cell.sparsity:.2f}" if round(cell.sparsity, 2) == cell.sparsity else f"{cell.sparsity:g}"
    )
    control = CONTROLS.get(cell.control)  # an unknown one is refused with the flags of its job
    if control and control.by_count:
        cell = replace(cell, source=None if control.by_scope else cell.task)
        flags["target_sparsity"] = cell.sparsity
        scope = study.flags_of(cell.task, "imp").get("scope")
        flags |= {"scope": scope} if scope and control.by_scope else {}
        job = made.add(Job(f"{here}-{what}-{cell.control}", "transfer", flags))
    else:
        job = search_id(str(cell.source), source_seed)
        flags["ticket"] = (
            f"jobs/{job}/rounds/{made.rung(job, cell.sparsity):02d}/ticket.safetensors"
        )
        if cell.control != "none" or job != search_id(cell.task, cell.seed):
            name = f"{here}-from-{cell.source}-seed{source_seed}-{what}-{cell.control}"
            job = made.add(Job(name, "transfer", flags, (job,)))
    made.cells[cell] = job


def summary(made: Plan) -> dict[str, Any]:
    """study.json: what the report needs."""
    first, cells, jobs = made.studies[0], made.cells, made.jobs.values()
    quick = all(job.flags.get("preset") in ("quick", "demo") for job in jobs)
    other = any(OTHER_ALLOWED in job.args.note for job in jobs)
    heads = dict.fromkeys(job.args.head_note for job in jobs)
    notes = (
        first.keys["note"],
        QUICK_LOOK if quick else "",
        OTHER_ALLOWED if other else "",
        *heads,
    )
    return {
        "name": first.keys["name"],
        "note": "; ".join(filter(None, notes)),
        "model": ", ".join(sorted({job.args.model_name_or_path for job in jobs})),
        "tasks": [task for task in TASKS if any(cell.task == task for cell in cells)],
        "sparsities": sorted({cell.sparsity for cell in cells if cell.sparsity}),
        "jobs": [{**asdict(job), "directory": f"jobs/{job.id}"} for job in jobs],
        "cells": [{**asdict(cell), "job": job} for cell, job in cells.items()],
    }
