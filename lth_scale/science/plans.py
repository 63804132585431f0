"""The jobs of a study, each once, and the conditions that they contribute to."""

import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from lth_scale.config import arguments, checks, command, resolution
from lth_scale.config.arguments import OTHER_ALLOWED, QUICK_LOOK, Arguments, Training
from lth_scale.config.command import as_argv
from lth_scale.config.errors import BadInput
from lth_scale.pruning.registries import CONTROLS, sparsities
from lth_scale.science.study_file import KINDS, MOST_TRAININGS, Flags, StudySpec
from lth_scale.tasks.registry import TASKS

# Flags whose values are files of other jobs, relative to the study's directory.
FILES = ("ticket", "theta", "dense")
THETA = "theta.safetensors"  # θᵢ in the directory of a search


@dataclass(frozen=True)
class Job:
    """A search (`imp`) or a transfer with its flags, and the jobs whose files it needs.

    trainings: how many times the steps of a transfer its control takes, by its budget. task: as the
    study calls it.
    """

    id: str
    kind: str
    flags: Flags
    needs: tuple[str, ...] = ()
    trainings: int = 1
    task: str = ""

    @functools.cached_property
    def args(self) -> Training:
        """The arguments as the command will resolve them. Raises BadInput."""
        try:
            flags = vars(_parser(self.kind).parse_args(as_argv(self.flags)))
            # Set after resolving, because their files do not exist yet.
            late = [name for name in (*FILES, "control") if self.needs and name in flags]
            values = {name: flags.pop(name) for name in late}
            args = replace(resolution.resolve(flags, KINDS[self.kind]), **values)
            if isinstance(args, Arguments):
                checks.check_search(args)
        except BadInput as problem:
            raise BadInput(f"{self.id}: {problem}") from None
        return args

    @functools.cached_property
    def sparsities(self) -> list[float]:
        """The sparsities of a search's rounds."""
        args = self.args
        assert isinstance(args, Arguments)
        return sparsities(args.schedule, args.target_sparsity, args.prune_rate)

    def below(self, directory: Path) -> "Job":
        """The job with the paths of its files in the study's directory."""
        located = {name: directory / self.flags[name] for name in FILES if name in self.flags}
        output = directory / "jobs" / self.id
        return replace(self, flags={**self.flags, "output_dir": output, **located})


@functools.cache
def _parser(kind: str) -> command.OneLineParser:
    return command.add_flags(command.OneLineParser(), KINDS[kind])


def difference(old: Flags, new: Flags, ignore: Collection[str]) -> str:
    """The first flag that differs, with both values; empty if none does."""
    for name in {**old, **new}:
        values = old.get(name), new.get(name)
        if name not in ignore and not arguments.same_value(name, *values):
            return "--{} {} and {}".format(name, *values)
    return ""


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
        """Add a job, or merge it with the job of the same id, and return the id.

        Raises BadInput if two studies set different flags.
        """
        old, new = self.jobs.get(job.id, job).flags, job.flags
        merged: Flags = {}
        if "target_sparsity" in new:
            targets = old["target_sparsity"], new["target_sparsity"]
            _check_one_schedule(job, *targets)
            merged["target_sparsity"] = max(targets)
        points = [point for flags in (old, new) for point in checks.points(flags.get("keep_theta"))]
        if points:
            merged["keep_theta"] = ",".join(dict.fromkeys(points))
        if differ := difference(old, new, ignore=merged):
            raise BadInput(f"{job.id}: is in two studies, with {differ}; use one value")
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
        """Add a search to the largest of `sparsities`; flags: those that concern rewinding."""
        point = flags.get("rewind_step", flags.get("rewind", "0"))
        grid = {"seed": seed, "control": "none", "target_sparsity": max(sparsities)}
        needs = (_search_id(task, seed),) if "dense" in flags else ()
        all_flags = {**study.flags_of(task, "imp"), **grid, **flags}
        self.add(Job(_search_id(task, seed, point), "imp", all_flags, needs, task=task))

    def add_dense(self, study: StudySpec, task: str, seed: int) -> None:
        """Add a dense network: round 0 of a search, if planned, or a job of its own."""
        job = _search_id(task, seed)
        if job not in self.jobs:
            flags = {**study.flags_of(task, "transfer"), "seeds": seed}
            job = self.add(Job(f"dense-{task}-seed{seed}", "transfer", flags, task=task))
        self.conditions[Condition(task, seed)] = job

    def add_subnetwork(self, study: StudySpec, condition: Condition, ticket_seed: int) -> None:
        """Add a condition above sparsity 0: a round of its ticket's search, or a transfer.

        ticket_seed: the seed of that search, which rewinds to θ₀. Raises BadInput.
        """
        task, control, sparsity = condition.task, condition.control, condition.sparsity
        flags = {**study.flags_of(task, "transfer"), "seeds": condition.seed, "control": control}
        prefix = _transfer_id(task, condition.seed)
        suffix = f"{_sparsity_text(sparsity)}-{control}"
        entry = CONTROLS.get(control)
        if entry and entry.by_count:
            condition = replace(condition, source=None if entry.by_scope else task)
            flags["target_sparsity"] = sparsity
            scope = study.flags_of(task, "imp").get("scope")
            if scope and entry.by_scope:
                flags["scope"] = scope
            job = self.add(Job(f"{prefix}-{suffix}", "transfer", flags, task=task))
        else:
            job = _search_id(str(condition.source), ticket_seed)
            number = self.round_at(job, sparsity)
            flags["ticket"] = f"jobs/{job}/rounds/{number:02d}/ticket.safetensors"
            if entry and entry.budget:
                name = f"{prefix}-{number}-rounds-{control}"
                trainings = entry.budget(number).total
                job = self.add(self._shared(Job(name, "transfer", flags, (job,), trainings, task)))
            elif control != "none" or job != _search_id(task, condition.seed):
                name = f"{prefix}-from-{condition.source}-seed{ticket_seed}-{suffix}"
                job = self.add(Job(name, "transfer", flags, (job,), task=task))
        self.conditions[condition] = job

    def _shared(self, job: Job) -> Job:
        """The job with the ticket of the planned one of its id: only the round matters to both."""
        planned = self.jobs.get(job.id, job)
        flags = {**job.flags, "ticket": planned.flags["ticket"]}
        return replace(job, flags=flags, needs=planned.needs)

    def add_rewound(self, study: StudySpec, condition: Condition, ticket_seed: int) -> None:
        """Add the transfer of another task's ticket with weights of its search other than θ₀.

        ticket_seed: the seed of that search. Raises BadInput.
        """
        task, seed, point = condition.task, condition.seed, condition.rewind
        search = _search_id(str(condition.source), ticket_seed, point)
        home = f"jobs/{search}/rounds/{self.round_at(search, condition.sparsity):02d}"
        self._check_kept(search, condition)
        theta = f"{home}/weights.safetensors" if point == "none" else f"jobs/{search}/{THETA}"
        files = {"ticket": f"{home}/ticket.safetensors", "theta": theta}
        flags = {**study.flags_of(task, "transfer"), "seeds": seed, "control": "none", **files}
        name = f"{_transfer_id(task, seed)}-from-{condition.source}-seed{ticket_seed}"
        name += f"-{_sparsity_text(condition.sparsity)}-none-rewind{point}"
        self.conditions[condition] = self.add(Job(name, "transfer", flags, (search,), task=task))

    def _check_kept(self, search: str, condition: Condition) -> None:
        """Raise BadInput if a search that does not rewind deletes a condition's weights."""
        last = self.jobs[search].sparsities[-1]
        if condition.rewind == "none" and abs(condition.sparsity - last) > 1e-9:
            raise BadInput(
                f"transfer: rewind: none: {search} keeps only its last trained weights, of "
                f"sparsity {last:g}, and not those of {condition.sparsity:g}; use one sparsity, "
                "or a study for each"
            )

    def _names(self) -> set[str]:
        """The tasks of all jobs, as the study calls them."""
        return {job.task for job in self.jobs.values()}

    def to_dict(self) -> dict[str, Any]:
        """The contents of study.json."""
        first, jobs = self.studies[0], self.jobs.values()
        quick = all(job.flags.get("preset") in ("quick", "demo") for job in jobs)
        other = any(OTHER_ALLOWED in job.args.note for job in jobs)
        heads = dict.fromkeys(job.args.head_note for job in jobs)
        notes = (first.content.note, QUICK_LOOK * quick, OTHER_ALLOWED * other, *heads)
        return {
            "name": first.name,
            "note": "; ".join(filter(None, notes)),
            "model": ", ".join(sorted({job.args.model_name_or_path for job in jobs})),
            "kinds": {
                name: TASKS.aliases[name] for name in sorted(self._names() & TASKS.aliases.keys())
            },
            "tasks": [task for task in TASKS if any(task == c.task for c in self.conditions)],
            "sparsities": sorted({c.sparsity for c in self.conditions if c.sparsity}),
            "jobs": [{**asdict(job), "directory": f"jobs/{job.id}"} for job in jobs],
            "cells": [{**asdict(c), "job": job} for c, job in self.conditions.items()],
        }


def _check_one_schedule(job: Job, *targets: float) -> None:
    """Raise BadInput if standard pruning has two targets: its schedule covers all rounds."""
    if job.flags.get("rewind") == "none" and len({*targets}) > 1:
        raise BadInput(
            f"{job.id}: to sparsity {min(targets):g} and to {max(targets):g}, which are two "
            "searches: the learning rate falls over all rounds; use one sparsity, or two studies"
        )


def build_plan(studies: list[StudySpec]) -> Plan:
    """Plan the jobs and conditions of studies, and check every job's flags. Raises BadInput."""
    file, count = studies[0].file, sum(map(_count_trainings, studies))
    if count > MOST_TRAININGS:
        raise BadInput(f"{file}: {count:,} trainings; plan at most {MOST_TRAININGS:,} in a study")
    plan = Plan(studies)
    try:
        for study in studies:
            _add_searches(plan, study)
        for study in studies:
            _add_grid(plan, study)
            _add_transfers(plan, study)
        for job in plan.jobs.values():
            _ = job.args  # raises BadInput
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    return plan


def _count_trainings(study: StudySpec) -> int:
    """The number of trainings, including those that are shared with other studies."""
    content, per_seed = study.content, 0
    for task, own in content.sparsities.items():
        controls = content.control_sparsities.get(task, ())
        rewound = content.rewind_sparsities.get(task, ())
        per_seed += 1 + len(own) + len(content.controls) * len(controls)
        per_seed += len(content.rewind) * (1 + len(rewound))
    total = len(content.seeds) * per_seed
    if grid := content.transfer:
        tickets = len(grid.sparsity) * len(grid.sources)
        per_target = 1 + tickets * (1 + len(grid.controls) + len(grid.rewind))
        total += len(grid.targets) * len(grid.seeds) * per_target
        total += len(grid.sources) * (1 + len(grid.rewind))
    return total


def _search_id(task: str, seed: int, point: str = "0") -> str:
    return f"search-{task}-seed{seed}" + (f"-rewind{point}" if point != "0" else "")


def _transfer_id(task: str, seed: int) -> str:
    return f"transfer-{task}-seed{seed}"


def _sparsity_text(sparsity: float) -> str:
    """Two digits after the point, and more if it has more."""
    return f"{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{sparsity:g}"


def _add_searches(plan: Plan, study: StudySpec) -> None:
    content = study.content
    for (task, own), seed in product(content.sparsities.items(), content.seeds):
        rewound = content.rewind_sparsities.get(task, [])
        sparsities = own + content.control_sparsities.get(task, [])
        points = content.rewind if rewound else []
        _add_searches_of(plan, study, Condition(task, seed), sparsities, rewound, points)
    if grid := content.transfer:
        for task in grid.sources:
            dense = Condition(task, grid.source_seed)
            _add_searches_of(plan, study, dense, grid.sparsity, grid.sparsity, grid.rewind)


def _add_searches_of(
    plan: Plan,
    study: StudySpec,
    dense: Condition,
    sparsities: list[float],
    rewound: list[float],
    points: list[str],
) -> None:
    """Add the search that rewinds to θ₀, to the largest of `sparsities`, and those of `points`.

    dense: the dense network that they start with. rewound: the sparsities of those of `points`.
    """
    task, seed = dense.task, dense.seed
    steps = ",".join(point for point in points if point != "none")
    kept = {"keep_theta": steps} if steps else {}
    plan.add_search(study, task, seed, sparsities, **kept)
    for point in points:
        flags = {"rewind_step": point, "dense": f"jobs/{_search_id(task, seed)}"}
        if point == "none":
            flags = {"rewind": "none"}
        plan.add_search(study, task, seed, rewound, **flags)


def _add_grid(plan: Plan, study: StudySpec) -> None:
    content = study.content
    for (task, own), seed in product(content.sparsities.items(), content.seeds):
        plan.add_dense(study, task, seed)
        conditions = [("none", sparsity) for sparsity in own]
        conditions += product(content.controls, content.control_sparsities.get(task, []))
        for control, sparsity in conditions:
            plan.add_subnetwork(study, Condition(task, seed, sparsity, control, task), seed)
        for point, sparsity in product(content.rewind, content.rewind_sparsities.get(task, [])):
            search = _search_id(task, seed, point)
            plan.round_at(search, sparsity)
            condition = Condition(task, seed, sparsity, source=task, rewind=point)
            plan.conditions[condition] = search


def _add_transfers(plan: Plan, study: StudySpec) -> None:
    """Add every source's ticket and control on every target, and on other tasks its rewound ones.

    A target's own ticket is that of its search with the same seed, if planned.
    """
    if (grid := study.content.transfer) is None:
        return
    for target, seed in product(grid.targets, grid.seeds):
        plan.add_dense(study, target, seed)
        grids = product(grid.sparsity, ["none", *grid.controls], grid.sources)
        for sparsity, control, source in grids:
            search = plan.jobs.get(_search_id(target, seed)) if source == target else None
            own = search is not None and search.flags["target_sparsity"] >= sparsity
            condition = Condition(target, seed, sparsity, control, source)
            plan.add_subnetwork(study, condition, seed if own else grid.source_seed)
        for sparsity, point, source in product(grid.sparsity, grid.rewind, grid.sources):
            if source != target:
                condition = Condition(target, seed, sparsity, source=source, rewind=point)
                plan.add_rewound(study, condition, grid.source_seed)
