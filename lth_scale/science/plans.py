"""The jobs of a study, each once, and the conditions that they contribute to."""

from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from lth_scale.config import checks
from lth_scale.config.arguments import OTHER_ALLOWED, QUICK_LOOK
from lth_scale.config.errors import BadInput
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.jobs import Job, difference
from lth_scale.science.study_file import MOST_TRAININGS, Flags, StudySpec
from lth_scale.tasks.registry import TASKS

CONTROLS_AT, REWOUND_AT = "control_sparsities", "rewind_sparsities"


@dataclass(frozen=True)
class Condition:
    """One training of the report.

    Sparsity 0 is the dense network; source: the task of the ticket, None if the mask does not
    come from a search; rewind: the rewind point of that search.
    """

    task: str
    seed: int
    sparsity: float = 0.0
    control: str = "none"
    source: str | None = None
    rewind: str = "0"


@dataclass
class Plan:
    """The jobs of a study, each after those it needs, and each condition with its job."""

    studies: list[StudySpec]
    jobs: dict[str, Job] = field(default_factory=dict)
    conditions: dict[Condition, str] = field(default_factory=dict)

    def add(self, job: Job) -> str:
        """Add a job or merge it with the same one, and return its id.

        A search goes to the largest sparsity that any condition needs. Raises BadInput if two
        studies want the job with different flags.
        """
        old, new = self.jobs.get(job.id, job).flags, job.flags
        merged: Flags = {}
        if "target_sparsity" in new:
            merged["target_sparsity"] = max(old["target_sparsity"], new["target_sparsity"])
        points = [point for flags in (old, new) for point in checks.points(flags.get("keep_theta"))]
        if points:
            merged["keep_theta"] = ",".join(dict.fromkeys(points))
        if differ := difference(old, new, ignore=merged):
            raise BadInput(f"{job.id}: two studies want it, with {differ}; use one value")
        self.jobs[job.id] = replace(job, flags={**new, **merged})
        return job.id

    def round_at(self, search: str, sparsity: float) -> int:
        """The round of a search that trains at `sparsity`. Raises BadInput."""
        reached = self.jobs[search].sparsities
        for number, value in enumerate(reached):
            if abs(value - sparsity) < 1e-9:
                return number
        known = ", ".join(f"{value:g}" for value in reached)
        raise BadInput(
            f"sparsity {sparsity}: {search} has no such round; "
            f"use one of {known}, or another prune_rate"
        )

    def add_search(
        self, study: StudySpec, task: str, seed: int, sparsities: list[float], **flags: str
    ) -> None:
        """Add a search to the largest of `sparsities`.

        flags: `rewind_step` or `rewind` for one that does not rewind to θ₀; `dense`: the search
        that provides its dense network.
        """
        point = flags.get("rewind_step", flags.get("rewind", "0"))
        grid = {"seed": seed, "control": "none", "target_sparsity": max(sparsities)}
        needs = (search_id(task, seed),) if "dense" in flags else ()
        all_flags = {**study.flags_of(task, "imp"), **grid, **flags}
        self.add(Job(search_id(task, seed, point), "imp", all_flags, needs))

    def add_dense(self, study: StudySpec, task: str, seed: int) -> None:
        """Add a dense network: round 0 of a search if there is one, or else a job of its own."""
        job = search_id(task, seed)
        if job not in self.jobs:
            flags = {**study.flags_of(task, "transfer"), "seeds": seed}
            job = self.add(Job(f"dense-{task}-seed{seed}", "transfer", flags))
        self.conditions[Condition(task, seed)] = job

    def add_subnetwork(self, study: StudySpec, condition: Condition, ticket_seed: int) -> None:
        """Add a condition above sparsity 0: a round of its ticket's search, or a transfer.

        ticket_seed: the seed of that search.
        """
        task, control, sparsity = condition.task, condition.control, condition.sparsity
        flags = {**study.flags_of(task, "transfer"), "seeds": condition.seed, "control": control}
        prefix, suffix = f"transfer-{task}-seed{condition.seed}", f"{fraction(sparsity)}-{control}"
        if CONTROLS.get(control) and CONTROLS.get(control) and CONTROLS[control].by_count:
            source = None if CONTROLS[control].by_scope else task
            condition = replace(condition, source=source)
            flags["target_sparsity"] = sparsity
            scope = study.flags_of(task, "imp").get("scope")
            if scope and CONTROLS[control].by_scope:
                flags["scope"] = scope
            job = self.add(Job(f"{prefix}-{suffix}", "transfer", flags))
        else:
            job = search_id(str(condition.source), ticket_seed)
            number = self.round_at(job, sparsity)
            flags["ticket"] = f"jobs/{job}/rounds/{number:02d}/ticket.safetensors"
            if control != "none" or job != search_id(task, condition.seed):
                name = f"{prefix}-from-{condition.source}-seed{ticket_seed}-{suffix}"
                job = self.add(Job(name, "transfer", flags, (job,)))
        self.conditions[condition] = job

    def to_dict(self) -> dict[str, Any]:
        """The contents of study.json."""
        first, jobs = self.studies[0], self.jobs.values()
        return {
            "name": first.name,
            "note": "; ".join(filter(None, (first.content.note, *self._notes()))),
            "model": ", ".join(sorted({job.args.model_name_or_path for job in jobs})),
            "tasks": [task for task in TASKS if any(task == c.task for c in self.conditions)],
            "sparsities": sorted({c.sparsity for c in self.conditions if c.sparsity}),
            "jobs": [{**asdict(job), "directory": f"jobs/{job.id}"} for job in jobs],
            "cells": [{**asdict(c), "job": job} for c, job in self.conditions.items()],
        }

    def _notes(self) -> list[str]:
        """What every output has to say about the settings of the jobs."""
        jobs = self.jobs.values()
        quick = all(job.flags.get("preset") in ("quick", "demo") for job in jobs)
        other = any(OTHER_ALLOWED in job.args.note for job in jobs)
        heads = dict.fromkeys(job.args.head_note for job in jobs)
        return [QUICK_LOOK * quick, OTHER_ALLOWED * other, *heads]


def build_plan(studies: list[StudySpec]) -> Plan:
    """Plan the jobs and conditions of studies, and check every job's flags. Raises BadInput."""
    file, count = studies[0].file, sum(map(count_trainings, studies))
    if count > MOST_TRAININGS:
        raise BadInput(f"{file}: {count:,} trainings; plan at most {MOST_TRAININGS:,} in a study")
    plan = Plan(studies)
    try:
        for study in studies:
            add_searches(plan, study)
        for study in studies:
            add_grid(plan, study)
            add_transfers(plan, study)
        for job in plan.jobs.values():
            _ = job.args  # raises BadInput
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    return plan


def count_trainings(study: StudySpec) -> int:
    """An upper bound of the number of trainings: those shared with other studies included."""
    content, per_seed = study.content, 0
    controls, rewound = (study.sparsities(key) for key in (CONTROLS_AT, REWOUND_AT))
    for task, own in study.sparsities().items():
        per_seed += 1 + len(own) + len(content.controls) * len(controls.get(task, ()))
        per_seed += len(content.rewind) * (1 + len(rewound.get(task, ())))
    total = len(content.seeds) * per_seed
    if grid := study.transfer:
        per_target = 1 + len(grid.sources) * (1 + len(grid.controls))
        total += len(grid.targets) * len(grid.seeds) * per_target + len(grid.sources)
    return total


def search_id(task: str, seed: int, point: str = "0") -> str:
    """The id of a search's job; `point`: its rewind point."""
    return f"search-{task}-seed{seed}" + (f"-rewind{point}" if point != "0" else "")


def fraction(sparsity: float) -> str:
    """`0.70`, or all digits of a sparsity with more than two."""
    return f"{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{sparsity:g}"


def add_searches(plan: Plan, study: StudySpec) -> None:
    """Add the searches of a study's grid and of its transfers' sources."""
    controls, rewound = (study.sparsities(key) for key in (CONTROLS_AT, REWOUND_AT))
    for (task, own), seed in product(study.sparsities().items(), study.content.seeds):
        points = study.content.rewind if task in rewound else []
        steps = ",".join(point for point in points if point != "none")
        kept = {"keep_theta": steps} if steps else {}
        plan.add_search(study, task, seed, own + controls.get(task, []), **kept)
        for point in points:
            flags = {"rewind_step": point, "dense": f"jobs/{search_id(task, seed)}"}
            if point == "none":
                flags = {"rewind": "none"}
            plan.add_search(study, task, seed, rewound[task], **flags)
    if grid := study.transfer:
        for task in grid.sources:
            plan.add_search(study, task, grid.source_seed, [grid.sparsity])


def add_grid(plan: Plan, study: StudySpec) -> None:
    """Add the dense networks, tickets, controls and rewound tickets of a study's tasks."""
    content = study.content
    controls, rewound = (study.sparsities(key) for key in (CONTROLS_AT, REWOUND_AT))
    for (task, own), seed in product(study.sparsities().items(), content.seeds):
        plan.add_dense(study, task, seed)
        for sparsity in own:
            plan.add_subnetwork(study, Condition(task, seed, sparsity, source=task), seed)
        for control, sparsity in product(content.controls, controls.get(task, [])):
            plan.add_subnetwork(study, Condition(task, seed, sparsity, control, task), seed)
        for point, sparsity in product(content.rewind, rewound.get(task, [])):
            search = search_id(task, seed, point)
            plan.round_at(search, sparsity)
            condition = Condition(task, seed, sparsity, source=task, rewind=point)
            plan.conditions[condition] = search


def add_transfers(plan: Plan, study: StudySpec) -> None:
    """Add every source's ticket and every control on every target.

    A target that has a search of the same seed uses its own ticket of that search.
    """
    if (grid := study.transfer) is None:
        return
    for target, seed in product(grid.targets, grid.seeds):
        plan.add_dense(study, target, seed)
        for control, source in product(["none", *grid.controls], grid.sources):
            search = plan.jobs.get(search_id(target, seed)) if source == target else None
            own = search is not None and search.flags["target_sparsity"] >= grid.sparsity
            condition = Condition(target, seed, grid.sparsity, control, source)
            plan.add_subnetwork(study, condition, seed if own else grid.source_seed)
