"""A study's YAML file, and the jobs and cells that its grid comes to. Nothing here runs anything."""

import functools
import itertools
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lth_scale import arguments
from lth_scale.arguments import CONTROLS, QUICK_LOOK, TASKS, Arguments, BadInput, Training, Transfer
from lth_scale.schedule import sparsities

Flags = dict[str, Any]
KINDS: dict[str, type] = {"imp": Arguments, "transfer": Transfer}
FLAGS = {kind: {spec.name for spec in fields(of)} for kind, of in KINDS.items()}
# The grid decides these.
RESERVED = {
    "task",
    "seed",
    "seeds",
    "output_dir",
    "target_sparsity",
    "ticket",
    "theta",
    "dense",
    "keep_theta",
    "rewind",
}
RESERVED |= {"rewind_step", "control"}
WITHOUT_TICKET = ("one_shot", "random_mask")  # nothing but the number of pruned weights matters to them


def _list_of(good: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: isinstance(value, list) and value and all(map(good, value))


def _by_task(good: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: isinstance(value, dict) and all(task in TASKS and good(x) for task, x in value.items())


def _is_fraction(value: Any) -> bool:
    return type(value) is float and 0 < value < 1


def _is_flags(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(type(x) in (str, int, float, bool) for x in value.values())
    )


def _is_command(value: Any) -> bool:
    try:
        return shutil.which(shlex.split(value)[0]) is not None
    except (ValueError, IndexError, AttributeError, TypeError):
        return False


_are_tasks, _are_fractions = _list_of(lambda value: value in TASKS), _list_of(_is_fraction)
RULES: dict[str, tuple[Callable[[Any], Any], str]] = {  # keys: what is good, and how to say it
    "name": (lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value), "letters, digits, - and _"),
    "note": (lambda value: isinstance(value, str), "a text"),
    "launcher": (_is_command, "a command that is installed, such as 'accelerate launch -m'"),
    "flags": (_is_flags, "a mapping of flags to values such as {max_steps: 100}"),
    "tasks": (
        lambda value: _are_tasks(value) or _by_task(_is_flags)(value),
        f"a list of {', '.join(TASKS)}, or a mapping of them to flags",
    ),
    "sources targets": (_are_tasks, f"a list of {', '.join(TASKS)}"),
    "seeds": (_list_of(lambda value: type(value) is int), "a list of whole numbers such as [1, 2, 3]"),
    "source_seed": (lambda value: type(value) is int, "a whole number"),
    "sparsity": (_is_fraction, "a fraction such as 0.7"),
    "sparsities control_sparsities rewind_sparsities": (
        lambda value: _are_fractions(value) or _by_task(_are_fractions)(value),
        "a list of fractions such as [0.5, 0.7], or a mapping of tasks to such lists",
    ),
    "controls": (_list_of(lambda value: value in CONTROLS), f"a list of {', '.join(CONTROLS)}"),
    "rewind": (_list_of(lambda value: type(value) in (str, int, float)), "a list such as [0.05, 0.5, none]"),
    "transfer": (lambda value: isinstance(value, dict), "a mapping with sources, targets and sparsity"),
    "include": (_list_of(lambda value: isinstance(value, str)), "a list of files, named from this one"),
}
TRANSFER_KEYS = {"sources", "targets", "sparsity", "seeds", "source_seed", "controls"}
KEYS = {key for keys in RULES for key in keys.split()} - TRANSFER_KEYS | {"seeds", "controls"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """One YAML file, checked and filled in: flags with those from outside, sparsities by task."""

    file: Path
    name: str
    note: str = ""
    launcher: str = ""
    flags: Flags
    tasks: dict[str, Flags]
    seeds: Sequence[int] = ()
    sparsities: dict[str, list[float]]
    controls: Sequence[str] = ()
    control_sparsities: dict[str, list[float]]
    rewind: Sequence[str]
    rewind_sparsities: dict[str, list[float]]
    transfer: dict[str, Any]

    def flags_of(self, task: str, kind: str) -> Flags:
        """Of this study's flags for a task, those that a kind of job has."""
        mine = {"task": task, **self.tasks.get(task, self.flags)}
        mine = {name: value for name, value in mine.items() if name in FLAGS[kind]}
        return {name: x.replace("{task}", task) if isinstance(x, str) else x for name, x in mine.items()}


def load(file: Path, given: Flags, outer: tuple[Path, ...] = ()) -> list[Study]:
    """A YAML file and those it includes; `given` are flags that override theirs.

    Raises BadInput that names file, key, value and remedy.
    """
    if file.resolve() in outer:
        raise BadInput(f"{file}: include: the file includes itself; take it out")
    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"{file}: cannot be read ({problem}); give a study such as studies/demo.yaml") from None
    except yaml.YAMLError as problem:
        raise BadInput(f"{file}: is not YAML ({problem}); mend it") from None
    check_keys(str(file), keys, KEYS)
    check_keys(f"{file}: transfer", keys.get("transfer", {}), TRANSFER_KEYS)
    check_sides(str(file), keys)
    included = keys.pop("include", [])
    study = Study(file=file, **fill_in({"name": file.stem, **keys}, given))
    for flags in (study.flags, *study.tasks.values()):
        check_flags(str(file), flags)
    parts = [load(file.parent / name, study.flags, (*outer, file.resolve())) for name in included]
    return [study, *itertools.chain(*parts)]


def check_keys(where: str, given: Any, known: set[str]) -> None:
    """Refuse unknown keys and wrong values. Raises BadInput."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}: holds no keys; give some of {', '.join(sorted(known))}")
    for key, value in given.items():
        if key not in known:
            raise BadInput(f"{where}: {key}: is no key of a study; take one of {', '.join(sorted(known))}")
        good, remedy = next(rule for keys, rule in RULES.items() if key in keys.split())
        if not good(value):
            raise BadInput(f"{where}: {key}: {value!r} cannot be used; give {remedy}")


def check_sides(where: str, keys: dict[str, Any]) -> None:
    """Refuse a grid with a side missing. Raises BadInput."""
    transfer = keys.get("transfer", {})
    if not any(key in keys for key in ("sparsities", "transfer", "include")):
        raise BadInput(f"{where}: sparsities: are missing; give sparsities, transfer or include")
    if "sparsities" not in keys and (late := {"controls", "control_sparsities", "rewind"} & keys.keys()):
        raise BadInput(f"{where}: {min(late)}: needs a search; give sparsities")
    needed = [key for key in ("tasks", "seeds") if "sparsities" in keys and key not in keys]
    needed += [f"transfer: {key}" for key in ("sources", "targets", "sparsity") if transfer and key not in transfer]
    if needed:
        raise BadInput(f"{where}: {needed[0]}: is missing; give it")
    for key in ("sparsities", "control_sparsities", "rewind_sparsities"):
        of, tasks = keys.get(key), set(keys.get("tasks", ()))
        if isinstance(of, dict) and (differ := set(of) - tasks or (key == "sparsities" and tasks - set(of))):
            raise BadInput(f"{where}: {key}: {min(differ)} is in only one of it and tasks; make them agree")


def check_flags(where: str, flags: Flags) -> None:
    """Refuse flags that no job has, and those that the grid decides. Raises BadInput."""
    for name, value in flags.items():
        if name in RESERVED:
            raise BadInput(f"{where}: --{name} {value}: the study's grid decides it; leave it out")
        if not any(name in known for known in FLAGS.values()):
            raise BadInput(f"{where}: --{name} {value}: is no flag of lth_scale.imp or lth_scale.transfer; see --help")


def fill_in(keys: dict[str, Any], given: Flags) -> dict[str, Any]:
    """What was not said; sparsities by task; rewind points as text, without the 0 that is always there."""
    tasks, goals, flags = keys.get("tasks", []), keys.get("sparsities", {}), {**(keys.get("flags") or {}), **given}
    for key in ("sparsities", "control_sparsities", "rewind_sparsities"):
        value = keys.get(key, goals)
        keys[key] = value if isinstance(value, dict) else dict.fromkeys(tasks, value)
    own = tasks if isinstance(tasks, dict) else {}
    keys["tasks"] = {task: {**flags, **(own.get(task) or {}), **given} for task in tasks}
    keys["flags"] = flags
    keys["rewind"] = [str(point) for point in keys.get("rewind", ()) if point not in (0, "0")]
    transfer = keys.setdefault("transfer", {})
    if transfer:
        seeds = transfer.get("seeds") or keys.get("seeds") or [1]
        keys["transfer"] = {"controls": [], "seeds": seeds, "source_seed": seeds[0], **transfer}
    return keys


@dataclass(frozen=True)
class Job:
    """One command. `--ticket` and `--dense` lie below the study's directory, as the jobs they come from."""

    id: str
    kind: str
    flags: Flags
    needs: tuple[str, ...] = ()

    @functools.cached_property
    def args(self) -> Training:
        """The arguments as the command will resolve them. Raises BadInput."""
        late = [name for name in ("ticket", "dense", "control") if self.needs and name in self.flags]
        argv = as_argv({name: value for name, value in self.flags.items() if name not in late})
        check = arguments.check_search if self.kind == "imp" else arguments.check_transfer
        try:
            args = arguments.resolve(vars(_parser(self.kind).parse_args(argv)), KINDS[self.kind])
            args = replace(args, **{name: self.flags[name] for name in late})  # not files yet
            check(args)
        except BadInput as problem:
            raise BadInput(f"{self.id}: {problem}") from None
        return args

    @property
    def ladder(self) -> list[float]:
        """The sparsities of a search's rounds."""
        assert isinstance(self.args, Arguments)
        return sparsities(self.args.schedule, self.args.target_sparsity, self.args.prune_rate)


@functools.cache
def _parser(kind: str) -> arguments.OneLineParser:
    return arguments.build_parser(kind, "", KINDS[kind])


def as_argv(flags: Flags) -> list[str]:
    """The flags as a command line; true is a flag without a value, false is left out."""
    given = {name: value for name, value in flags.items() if value is not False}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))[: 1 if value is True else 2]]


@dataclass(frozen=True)
class Cell:
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

    studies: list[Study]
    jobs: dict[str, Job] = field(default_factory=dict)
    cells: dict[Cell, str] = field(default_factory=dict)

    def add(self, job: Job) -> str:
        """Take in a job, or merge it with the same one: a search goes to the largest sparsity that is wanted."""
        old, new = self.jobs.get(job.id, job).flags, job.flags
        grown: Flags = {}
        if "target_sparsity" in new:
            grown["target_sparsity"] = max(old["target_sparsity"], new["target_sparsity"])
        if kept := dict.fromkeys(arguments.points(old.get("keep_theta")) + arguments.points(new.get("keep_theta"))):
            grown["keep_theta"] = ",".join(kept)
        for name in ({**old, **new}).keys() - grown.keys():
            if old.get(name) != new.get(name):
                raise BadInput(
                    f"{job.id}: two studies want it, with --{name} {old.get(name)} and {new.get(name)}; use one value"
                )
        self.jobs[job.id] = replace(job, flags={**new, **grown})
        return job.id

    def rung(self, search: str, sparsity: float) -> int:
        """The round of a search that trains at `sparsity`. Raises BadInput."""
        ladder = self.jobs[search].ladder
        near = [k for k, reached in enumerate(ladder) if abs(reached - sparsity) < 1e-9]
        if not near:
            there = ", ".join(f"{reached:g}" for reached in ladder)
            raise BadInput(f"sparsity {sparsity}: {search} has no such round; take of {there}, or another prune_rate")
        return near[0]


def plan(studies: list[Study]) -> Plan:
    """The jobs and cells of studies, those that are the same merged, every job's flags checked. Raises BadInput."""
    made = Plan(studies)
    try:
        for study in studies:
            add_searches(made, study)
        for study in studies:
            add_grid(made, study)
            add_transfers(made, study)
        for job in made.jobs.values():
            assert job.args
    except BadInput as problem:
        raise BadInput(f"{studies[0].file}: {problem}") from None
    return made


def search_id(task: str, seed: int, point: str = "0") -> str:
    """The name of a search's job."""
    return f"search-{task}-seed{seed}" + (f"-rewind{point}" if point != "0" else "")


def add_searches(made: Plan, study: Study) -> None:
    """The searches of a study's grid and of its transfers' sources."""
    for task, seed in itertools.product(study.sparsities, study.seeds):
        goals = study.sparsities[task] + study.control_sparsities.get(task, [])
        rewound = study.rewind_sparsities.get(task, [])
        points = study.rewind if rewound else []
        kept = ",".join(point for point in points if point != "none")
        add_search(made, study, task, seed, goals, {"keep_theta": kept} if kept else {})
        for point in points:
            add_search(made, study, task, seed, rewound, {}, point)
    for task in study.transfer.get("sources", ()):
        add_search(made, study, task, study.transfer["source_seed"], [study.transfer["sparsity"]], {})


def add_search(made: Plan, study: Study, task: str, seed: int, goals: list[float], more: Flags,
               point: str = "0") -> None:  # fmt: skip
    """A search to the largest of `goals`; one that rewinds to θᵢ takes the dense network and θᵢ of the plain one."""
    needs: tuple[str, ...] = ()
    if point == "none":
        more = {"rewind": "none"}
    elif point != "0":
        needs = (search_id(task, seed),)
        more = {"rewind_step": point, "dense": f"jobs/{needs[0]}"}
    flags = {"seed": seed, "control": "none", "target_sparsity": max(goals), **more}
    made.add(Job(search_id(task, seed, point), "imp", {**study.flags_of(task, "imp"), **flags}, needs))


def add_grid(made: Plan, study: Study) -> None:
    """The cells of a study's tasks: dense, found, rewound, and the controls' jobs."""
    for task, seed in itertools.product(study.sparsities, study.seeds):
        add_dense(made, study, task, seed)
        for sparsity in study.sparsities[task]:
            add_cell(made, study, Cell(task, seed, sparsity, source=task), seed)
        for control, sparsity in itertools.product(study.controls, study.control_sparsities.get(task, [])):
            add_cell(made, study, Cell(task, seed, sparsity, control, task), seed)
        for point, sparsity in itertools.product(study.rewind, study.rewind_sparsities.get(task, [])):
            made.rung(search_id(task, seed, point), sparsity)
            made.cells[Cell(task, seed, sparsity, source=task, rewind=point)] = search_id(task, seed, point)


def add_transfers(made: Plan, study: Study) -> None:
    """Every source's ticket, and every control, on every target; a target with a search of that seed takes its own."""
    what = study.transfer
    for target, seed in itertools.product(what.get("targets", ()), what.get("seeds", ())):
        add_dense(made, study, target, seed)
        for control, source in itertools.product(["none", *what["controls"]], what["sources"]):
            own = made.jobs.get(search_id(target, seed)) if source == target else None
            mine = own is not None and own.flags["target_sparsity"] >= what["sparsity"]
            cell = Cell(target, seed, what["sparsity"], control, source)
            add_cell(made, study, cell, seed if mine else what["source_seed"])


def add_dense(made: Plan, study: Study, task: str, seed: int) -> None:
    """The dense network: round 0 of the search of that task and seed, or where there is none a job of its own."""
    job = search_id(task, seed)
    if job not in made.jobs:
        flags = {**study.flags_of(task, "transfer"), "seeds": seed}
        job = made.add(Job(f"dense-{task}-seed{seed}", "transfer", flags))
    made.cells[Cell(task, seed)] = job


def add_cell(made: Plan, study: Study, cell: Cell, source_seed: int) -> None:
    """A cell above sparsity 0: a round of the search whose ticket it is, or a transfer."""
    flags = {**study.flags_of(cell.task, "transfer"), "seeds": cell.seed, "control": cell.control}
    here = f"transfer-{cell.task}-seed{cell.seed}"
    what = f"{cell.sparsity:.2f}" if round(cell.sparsity, 2) == cell.sparsity else f"{cell.sparsity:g}"
    if cell.control in WITHOUT_TICKET:
        cell = replace(cell, source=cell.task if cell.control == "random_mask" else None)
        flags["target_sparsity"] = cell.sparsity
        job = made.add(Job(f"{here}-{what}-{cell.control}", "transfer", flags))
    else:
        job = search_id(str(cell.source), source_seed)
        flags["ticket"] = f"jobs/{job}/rounds/{made.rung(job, cell.sparsity):02d}/ticket.safetensors"
        if cell.control != "none" or job != search_id(cell.task, cell.seed):
            name = f"{here}-from-{cell.source}-seed{source_seed}-{what}-{cell.control}"
            job = made.add(Job(name, "transfer", flags, (job,)))
    made.cells[cell] = job


def summary(made: Plan) -> dict[str, Any]:
    """study.json: what the report needs."""
    first, cells = made.studies[0], made.cells
    quick = all(job.flags.get("preset") in ("quick", "demo") for job in made.jobs.values())
    jobs = [
        {"id": job.id, "kind": job.kind, "directory": f"jobs/{job.id}", "needs": job.needs, "flags": job.flags}
        for job in made.jobs.values()
    ]
    return {
        "name": first.name,
        "note": "; ".join(filter(None, (first.note, QUICK_LOOK if quick else ""))),
        "model": ", ".join(sorted({job.args.model_name_or_path for job in made.jobs.values()})),
        "tasks": [task for task in TASKS if any(cell.task == task for cell in cells)],
        "sparsities": sorted({cell.sparsity for cell in cells if cell.sparsity}),
        "jobs": jobs,
        "cells": [{**asdict(cell), "job": job} for cell, job in cells.items()],
    }
