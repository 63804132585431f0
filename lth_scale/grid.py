"""A study's YAML file, and the jobs and cells that its grid comes to. Nothing here runs anything."""

import functools
import json
import re
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lth_scale import arguments, files
from lth_scale.arguments import (
    OTHER_ALLOWED,
    QUICK_LOOK,
    TASKS,
    Arguments,
    BadInput,
    Transfer,
    as_words,
    brief,
    is_printable,
)
from lth_scale.schedule import sparsities

Flags = dict[str, Any]
KINDS: dict[str, type] = {"imp": Arguments, "transfer": Transfer}
FLAGS = {kind: {spec.name for spec in fields(of)} for kind, of in KINDS.items()}
FLAGS["transfer"].discard("scope")  # `add_cell` gives a search's to one_shot, which alone has a use for it
# The grid decides these.
RESERVED = {"task", "seed", "seeds", "output_dir", "target_sparsity", "ticket", "theta", "dense", "keep_theta",
            "rewind", "rewind_step", "control"}  # fmt: skip
LONGEST, MOST_FILES, MOST_TRAININGS = 2**18, 100, 10_000  # bytes of a file; of a study with all that it includes
LONGEST_NAME, LONGEST_NOTE = 200, 1000
WITHOUT_TICKET = ("one_shot", "random_mask")  # nothing but the number of pruned weights matters to them
SPARSITIES = ("sparsities", "control_sparsities", "rewind_sparsities")
SOME_FLAGS = {"max_steps": 100, "learning_rate": 1e-3, "optim": "sgd", "bf16": True, "ignore": ["pooler"]}
LISTS = {"ignore"}  # the flags that take several values
# Examples of what each key may hold: a value has the types of one of them, and so have its entries.
KEYS: dict[str, tuple] = {
    "name": ("mine",), "note": ("one sentence",), "launcher": ("accelerate launch -m",), "include": (["demo.yaml"],),
    "flags": (SOME_FLAGS,), "tasks": (["mlm", "sst2"], {"mlm": SOME_FLAGS, "sst2": {}}), "seeds": ([1, 2, 3],),
    "controls": (["random_mask", "reinit"],), "rewind": ([0.05, 100, "none"],),
    "transfer": ({"sources": ["mlm"], "targets": ["sst2"], "sparsity": 0.7, "seeds": [1], "source_seed": 1},),
    **dict.fromkeys(SPARSITIES, ([0.5, 0.7], {"mlm": [0.7], "sst2": [0.6]})),
}  # fmt: skip
TRANSFER_KEYS: dict[str, tuple] = {
    "sources": (["mlm", "sst2"],), "targets": (["mlm", "sst2"],), "sparsity": (0.7,), "source_seed": (1,),
    "seeds": KEYS["seeds"], "controls": KEYS["controls"],
}  # fmt: skip


class PlainLoader(yaml.SafeLoader):
    """Plain values alone, each of which is what it looks like, and each key once.

    No aliases: a few of those can stand for more than fits in memory. Of YAML 1.1's numbers, truths and dates only
    those that YAML 1.2 and people read the same. Every refusal is BadInput with the line, or a YAMLError.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Raises BadInput at an alias."""
        if self.check_event(yaml.AliasEvent):
            raise BadInput(f"*{self.peek_event().anchor}: aliases are not read; write out what they stand for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Raises BadInput for a key that is there twice, and for `<<`."""
        known: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == f"{TAG}merge":
                refuse(key, "<<: keys are not merged; write them out")
            name = key.value if isinstance(key, yaml.ScalarNode) else "a key"
            if name in known:
                refuse(key, f"{name}: is there twice, first in line {line(known[name])}; keep one")
            known[name] = key
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A number, a truth or a date. Raises BadInput unless it is written in one of the PLAIN ways."""
        text = node.value
        if len(text) > DIGITS:
            refuse(node, f"{text[:DIGITS]}…: is a number of {len(text)} characters; give {DIGITS} or fewer")
        value = CONSTRUCTORS[node.tag](self, node)
        if not re.fullmatch(PLAIN, text, re.ASCII):
            plain = [str(int(text))] if text.isdigit() else []
            rather = ", ".join(dict.fromkeys([*plain, json.dumps(value, default=str), f'"{text}"']))
            refuse(node, f"{text} cannot be read as it looks: YAML 1.1 takes it for {value}; write one of {rather}")
        return value

    def construct_other(self, node: yaml.Node) -> NoReturn:
        """Raises BadInput."""
        refuse(node, f"{node.tag}: such values are not read; write a text, a number, true, false, a list or keys")


DIGITS = 30
PLAIN = r"[-+]?(0|[1-9]\d*)|[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?|[-+]?\.(?i:inf)|\.(?i:nan)|(?i:true|false)"
TAG = "tag:yaml.org,2002:"
CONSTRUCTORS = {
    f"{TAG}int": yaml.SafeLoader.construct_yaml_int,
    f"{TAG}float": yaml.SafeLoader.construct_yaml_float,
    f"{TAG}bool": yaml.SafeLoader.construct_yaml_bool,
    f"{TAG}timestamp": yaml.SafeLoader.construct_yaml_timestamp,
}
for tag in CONSTRUCTORS:
    PlainLoader.add_constructor(tag, PlainLoader.construct_plain)
for tag in ("binary", "omap", "pairs", "set"):
    PlainLoader.add_constructor(f"{TAG}{tag}", PlainLoader.construct_other)


def line(node: yaml.Node) -> int:
    """The line of a study's file that a node begins in, from 1."""
    return node.start_mark.line + 1


def refuse(node: yaml.Node, why: str) -> NoReturn:
    """Raises BadInput."""
    raise BadInput(f"line {line(node)}: {why}")


@dataclass(frozen=True)
class Study:
    """One YAML file, checked, with what it did not say; `flags`, and those of each task, with the ones from outside."""

    file: Path
    keys: dict[str, Any]
    flags: Flags
    tasks: dict[str, Flags]

    def flags_of(self, task: str, kind: str) -> Flags:
        """Of this study's flags for a task, those that a kind of job has."""
        mine = {name: x for name, x in self.tasks.get(task, self.flags).items() if name in FLAGS[kind]}
        filled = {name: x.replace("{task}", task) for name, x in mine.items() if isinstance(x, str)}
        return {"task": task, **mine, **filled}


def load(file: Path, given: Flags) -> list[Study]:
    """A YAML file and those it includes; `given` overrides their flags. Raises BadInput: file, key, value, remedy.

    A file that is included several times with the same flags counts once.
    """
    found: dict[tuple[Path, str], Study] = {}
    _include(file, given, (), found)
    studies = list(found.values())
    check_name(file, studies[0].keys["name"])
    return studies


def _include(file: Path, given: Flags, outer: tuple[Path, ...], found: dict[tuple[Path, str], Study]) -> None:
    """Add a file and those it includes to `found`, by place and flags from outside. Raises BadInput."""
    try:
        text, place = files.read_text(file, LONGEST), file.resolve()
        if place in outer:
            raise BadInput("include: the file includes itself; take it out")
        key = (place, json.dumps(given, sort_keys=True))
        if key in found:
            return
        if len(found) == MOST_FILES:
            raise BadInput(f"include: these are more than {MOST_FILES} files in all; put studies into one file")
        found[key] = study = read(file, text, given)
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise BadInput(
            f"{file}: cannot be read as YAML ({problem}); give a study such as studies/demo.yaml"
        ) from problem
    for name in study.keys.get("include", ()):
        _include(file.parent / name, study.flags, (*outer, place), found)


def read(file: Path, text: str, given: Flags) -> Study:
    """The study that a file's text describes. Raises BadInput, or what YAML does."""
    keys = PlainLoader(text).get_single_data()
    check_keys("", keys, KEYS)
    check_keys("transfer: ", keys.get("transfer", {}), TRANSFER_KEYS)
    check_sides(keys)
    return fill_in(file, keys, given)


def check_name(file: Path, name: str) -> None:
    """Refuse a name that cannot be a directory's. Raises BadInput."""
    if not re.fullmatch(r"[^-\s/][^/\n]*(?<![\s.])", name) or len(name.encode()) > LONGEST_NAME:
        raise BadInput(
            f"{file}: name: {brief(repr(name))} is to name a directory; give 1 to {LONGEST_NAME} bytes without /, "
            "that begin with no blank or - and end in no blank or dot"
        )


def check_texts(where: str, given: Any) -> None:
    """Refuse characters that would drive a terminal or reorder a line, in keys and values alike. Raises BadInput."""
    for key, value in given.items() if isinstance(given, dict) else ():
        check_texts(where, key)
        check_texts(f"{where}: {key}", value)
    for value in given if isinstance(given, list) else ():
        check_texts(where, value)
    lines = where in ("note", "launcher")  # which may be written in several
    for each in given if isinstance(given, str) else ():
        if not is_printable(each) or (each == "\n" and not lines):
            raise BadInput(f"{where}: holds the character {ascii(each)[1:-1]}, which cannot be shown; take it out")


def check_keys(where: str, given: Any, known: dict[str, tuple]) -> None:
    """Refuse unknown keys and wrong values. Raises BadInput."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}holds no keys; give some of {', '.join(known)}")
    for key, value in given.items():
        if key not in known:
            raise BadInput(f"{where}{brief(str(key))}: is no key of a study; take one of {', '.join(known)}")
        check_texts(f"{where}{key}", value)
        twice = [part for i, part in enumerate(value) if part in value[:i]] if isinstance(value, list) else []
        if twice and key != "include":
            raise BadInput(f"{where}{key}: {twice[0]!r} is given twice; take one out")
        if not any(is_like(value, example) for example in known[key]):
            raise BadInput(
                f"{where}{key}: {brief(repr(value))} cannot be used; give such as {' or '.join(map(str, known[key]))}"
            )


def is_like(value: Any, example: Any) -> bool:
    """True for a value of the example's type, each of whose entries is like one of the example's."""
    if isinstance(value, dict) and isinstance(example, dict):
        return not value or is_like(list(value.values()), list(example.values()))
    if isinstance(value, list) and isinstance(example, list):
        return value != [] and all(any(is_like(x, y) for y in example) for x in value)
    return type(value) is type(example)


def check_sides(keys: dict[str, Any]) -> None:
    """Refuse a grid with a side missing, and a launcher that is not there. Raises BadInput."""
    transfer = keys.get("transfer", TRANSFER_KEYS)
    needed = [f"transfer: {key}" for key in ("sources", "targets", "sparsity") if key not in transfer]
    if not {"transfer", "include"} & keys.keys() or {"controls", "rewind", *SPARSITIES} & keys.keys():
        needed += [key for key in ("sparsities", "tasks", "seeds") if key not in keys]
    if needed:
        raise BadInput(f"{needed[0]}: is missing; give it")
    for key in SPARSITIES:
        of, tasks = keys.get(key), set(keys.get("tasks", ()))
        if isinstance(of, dict) and (differ := set(of) - tasks or (key == "sparsities" and tasks - set(of))):
            raise BadInput(f"{key}: {min(differ)} is in only one of it and tasks; make them agree")
    if "launcher" in keys and not shutil.which(keys["launcher"].split(" ")[0]):
        raise BadInput(f"launcher: {keys['launcher']!r} is no command here; install it, or leave it out")


def fill_in(file: Path, keys: dict[str, Any], given: Flags) -> Study:
    """A study from its keys and the flags from outside. Raises BadInput for flags that it cannot have."""
    own, flags = keys.get("tasks", {}), {**keys.get("flags", {}), **given}
    tasks = {task: {**flags, **(own[task] if isinstance(own, dict) else {}), **given} for task in own}
    for name, value in chain(flags.items(), *(mine.items() for mine in tasks.values())):
        if name in RESERVED:
            raise BadInput(f"--{name} {value}: the study's grid decides it; leave it out")
        if name not in FLAGS["imp"] | FLAGS["transfer"]:
            raise BadInput(f"--{name} {value}: is no flag of lth_scale.imp or lth_scale.transfer; see --help")
    keys = {"name": file.stem, "note": "", "launcher": "", "seeds": [1], "controls": [], **keys}
    keys["note"] = " ".join(keys["note"].split())
    if len(keys["note"]) > LONGEST_NOTE:
        raise BadInput(f"note: has {len(keys['note']):,} characters; give at most {LONGEST_NOTE:,}")
    for key in SPARSITIES:
        value = keys.get(key, keys.get("sparsities", {}))
        keys[key] = value if isinstance(value, dict) else dict.fromkeys(tasks, value)
    keys["rewind"] = [str(point) for point in keys.get("rewind", ()) if point not in (0, "0")]  # 0 is always there
    for point in keys["rewind"]:  # they name directories
        if not re.fullmatch(r"none|\d{1,18}|0?\.\d+|\d(\.\d+)?e-\d+", point, re.ASCII):
            raise BadInput(f"rewind: {brief(repr(point))}: give none, steps such as 100, or a fraction such as 0.05")
    what = {"sources": [], "targets": [], "controls": [], "seeds": keys["seeds"], **keys.get("transfer", {})}
    keys["transfer"] = {"source_seed": what["seeds"][0], **what}
    return Study(file, keys, flags, tasks)


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
            late = {name: given.pop(name) for name in ("ticket", "dense", "control") if self.needs and name in given}
            args = replace(arguments.resolve(given, KINDS[self.kind]), **late)  # not files yet
            if self.kind == "imp":
                arguments.check_search(args)
        except BadInput as problem:
            raise BadInput(f"{self.id}: {problem}") from None
        return args

    @functools.cached_property
    def ladder(self) -> list[float]:
        """The sparsities of a search's rounds."""
        return sparsities(self.args.schedule, self.args.target_sparsity, self.args.prune_rate)


@functools.cache
def parser_of(kind: str) -> arguments.OneLineParser:
    """The parser of a kind of job."""
    return arguments.build_parser("", "", KINDS[kind])


def as_argv(flags: Flags) -> list[str]:
    """The flags as a command line; true is a flag without a value, false is left out."""
    return [word for name, value in flags.items() if value is not False for word in as_words(name, value)]


def difference(old: Flags, new: Flags, but: Collection[str]) -> str:
    """The first flag that differs, with both values, or nothing."""
    names = (name for name in {**old, **new} if name not in but)
    differ = (name for name in names if not arguments.is_same(name, old.get(name), new.get(name)))
    return next((f"--{name} {old.get(name)} and {new.get(name)}" for name in differ), "")


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
        grown: Flags = {name: max(old[name], new[name]) for name in ("target_sparsity",) if name in new}
        if kept := dict.fromkeys(arguments.points(old.get("keep_theta")) + arguments.points(new.get("keep_theta"))):
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
        raise BadInput(f"sparsity {sparsity}: {search} has no such round; take of {there}, or another prune_rate")


def plan(studies: list[Study]) -> Plan:
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


def trainings(study: Study) -> int:
    """How many cells and rewound searches a study has at most, those that it shares with others included."""
    keys, what = study.keys, study.keys["transfer"]
    a_seed = 0
    for task, found in keys["sparsities"].items():
        a_seed += 1 + len(found) + len(keys["controls"]) * len(keys["control_sparsities"].get(task, ()))
        a_seed += len(keys["rewind"]) * (1 + len(keys["rewind_sparsities"].get(task, ())))
    across = 1 + len(what["sources"]) * (1 + len(what["controls"]))
    return len(keys["seeds"]) * a_seed + len(what["targets"]) * len(what["seeds"]) * across + len(what["sources"])


def search_id(task: str, seed: int, point: str = "0") -> str:
    """The name of a search's job."""
    return f"search-{task}-seed{seed}" + (f"-rewind{point}" if point != "0" else "")


def add_searches(made: Plan, study: Study) -> None:
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
            add_search(made, study, task, seed, rewound, **({"rewind": "none"} if point == "none" else plain))
    for task in what["sources"]:
        add_search(made, study, task, what["source_seed"], [what["sparsity"]])


def add_search(made: Plan, study: Study, task: str, seed: int, goals: list[float], **more: str) -> None:
    """A search to the largest of `goals`; one that rewinds to θᵢ takes the dense network and θᵢ of the plain one."""
    flags = {**study.flags_of(task, "imp"), "seed": seed, "control": "none", "target_sparsity": max(goals), **more}
    point = more.get("rewind_step", more.get("rewind", "0"))
    needs = (search_id(task, seed),) if "dense" in more else ()
    made.add(Job(search_id(task, seed, point), "imp", flags, needs))


def add_grid(made: Plan, study: Study) -> None:
    """The cells of a study's tasks: dense, found, rewound, and the controls' jobs."""
    keys = study.keys
    for task, seed in product(keys["sparsities"], keys["seeds"]):
        add_dense(made, study, task, seed)
        for sparsity in keys["sparsities"][task]:
            add_cell(made, study, Cell(task, seed, sparsity, source=task), seed)
        for control, sparsity in product(keys["controls"], keys["control_sparsities"].get(task, [])):
            add_cell(made, study, Cell(task, seed, sparsity, control, task), seed)
        for point, sparsity in product(keys["rewind"], keys["rewind_sparsities"].get(task, [])):
            made.rung(search_id(task, seed, point), sparsity)
            made.cells[Cell(task, seed, sparsity, source=task, rewind=point)] = search_id(task, seed, point)


def add_transfers(made: Plan, study: Study) -> None:
    """Every source's ticket, and every control, on every target; a target with a search of that seed takes its own."""
    what = study.keys["transfer"]
    for target, seed in product(what["targets"], what["seeds"]):
        add_dense(made, study, target, seed)
        for control, source in product(["none", *what["controls"]], what["sources"]):
            own = made.jobs.get(search_id(target, seed)) if source == target else None
            mine = own is not None and own.flags["target_sparsity"] >= what["sparsity"]
            cell = Cell(target, seed, what["sparsity"], control, source)
            add_cell(made, study, cell, seed if mine else what["source_seed"])


def add_dense(made: Plan, study: Study, task: str, seed: int) -> None:
    """The dense network: round 0 of the search of that task and seed, or where there is none a job of its own."""
    job = search_id(task, seed)
    if job not in made.jobs:
        job = made.add(Job(f"dense-{task}-seed{seed}", "transfer", study.flags_of(task, "transfer") | {"seeds": seed}))
    made.cells[Cell(task, seed)] = job


def add_cell(made: Plan, study: Study, cell: Cell, source_seed: int) -> None:
    """A cell above sparsity 0: a round of the search whose ticket it is, or a transfer."""
    flags = {**study.flags_of(cell.task, "transfer"), "seeds": cell.seed, "control": cell.control}
    here = f"transfer-{cell.task}-seed{cell.seed}"
    what = f"{cell.sparsity:.2f}" if round(cell.sparsity, 2) == cell.sparsity else f"{cell.sparsity:g}"
    if cell.control in WITHOUT_TICKET:
        cell = replace(cell, source=cell.task if cell.control == "random_mask" else None)
        flags["target_sparsity"] = cell.sparsity
        scope = study.flags_of(cell.task, "imp").get("scope")
        flags |= {"scope": scope} if scope and cell.control == "one_shot" else {}
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
    first, cells, jobs = made.studies[0], made.cells, made.jobs.values()
    quick = all(job.flags.get("preset") in ("quick", "demo") for job in jobs)
    other = any(OTHER_ALLOWED in job.args.note for job in jobs)
    heads = dict.fromkeys(job.args.head_note for job in jobs)
    notes = (first.keys["note"], QUICK_LOOK if quick else "", OTHER_ALLOWED if other else "", *heads)
    return {
        "name": first.keys["name"],
        "note": "; ".join(filter(None, notes)),
        "model": ", ".join(sorted({job.args.model_name_or_path for job in jobs})),
        "tasks": [task for task in TASKS if any(cell.task == task for cell in cells)],
        "sparsities": sorted({cell.sparsity for cell in cells if cell.sparsity}),
        "jobs": [{**asdict(job), "directory": f"jobs/{job.id}"} for job in jobs],
        "cells": [{**asdict(cell), "job": job} for cell, job in cells.items()],
    }
