"""A study's YAML file, and the jobs and cells that its grid comes to. Nothing here runs anything."""

import json
import re
import shutil
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief, is_printable

Flags = dict[str, Any]
KINDS: dict[str, type[Training]] = {"imp": Arguments, "transfer": Transfer}
FLAGS = {kind: {spec.name for spec in fields(of)} for kind, of in KINDS.items()}

RESERVED = flags_with("grid")
LISTS = flags_with("several") - RESERVED
# `add_cell` gives a search's to one_shot, which alone uses it
FLAGS["transfer"].discard("scope")
LONGEST, MOST_FILES, MOST_TRAININGS = (
    2**18,
    100,
    10_000,
)  # bytes of a file; of a study with all that it includes
LONGEST_NAME, LONGEST_NOTE = 200, 1000
WITHOUT_TICKET = (
    "one_shot",
    "random_mask",
)  # nothing but the number of pruned weights matters to them
SPARSITIES = ("sparsities", "control_sparsities", "rewind_sparsities")
SOME_FLAGS = {
    "max_steps": 100,
    "learning_rate": 1e-3,
    "optim": "sgd",
    "bf16": True,
    "ignore": ["pooler"],
}
# Examples of what each key may hold: a value has the types of one of them, and so have its entries.
KEYS: dict[str, tuple] = {
    "name": ("mine",),
    "note": ("one sentence",),
    "launcher": ("accelerate launch -m",),
    "include": (["demo.yaml"],),
    "flags": (SOME_FLAGS,),
    "tasks": (["mlm", "sst2"], {"mlm": SOME_FLAGS, "sst2": {}}),
    "seeds": ([1, 2, 3],),
    "controls": (["random_mask", "reinit"],),
    "rewind": ([0.05, 100, "none"],),
    "transfer": (
        {"sources": ["mlm"], "targets": ["sst2"], "sparsity": 0.7, "seeds": [1], "source_seed": 1},
    ),
    **dict.fromkeys(SPARSITIES, ([0.5, 0.7], {"mlm": [0.7], "sst2": [0.6]})),
}
TRANSFER_KEYS: dict[str, tuple] = {
    "sources": (["mlm", "sst2"],),
    "targets": (["mlm", "sst2"],),
    "sparsity": (0.7,),
    "source_seed": (1,),
    "seeds": KEYS["seeds"],
    "controls": KEYS["controls"],
}


class PlainLoader(yaml.SafeLoader):
    """Plain values alone, each of which is what it looks like, and each key once.

    No aliases: a few of those can stand for more than fits in memory. Of YAML 1.1's numbers, truths and dates only
    those that YAML 1.2 and people read the same. Every refusal is BadInput with the line, or a YAMLError.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Raises BadInput at an alias."""
        if self.check_event(yaml.AliasEvent):
            raise BadInput(
                f"*{self.peek_event().anchor}: aliases are not read; write out what they stand for"
            )
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
            refuse(
                node,
                f"{text[:DIGITS]}…: is a number of {len(text)} characters; give {DIGITS} or fewer",
            )
        value = CONSTRUCTORS[node.tag](self, node)
        if not re.fullmatch(PLAIN, text, re.ASCII):
            plain = [str(int(text))] if text.isdigit() else []
            rather = ", ".join(dict.fromkeys([*plain, json.dumps(value, default=str), f'"{text}"']))
            refuse(
                node,
                f"{text} cannot be read as it looks: YAML 1.1 takes it for {value}; write one of {rather}",
            )
        return value

    def construct_other(self, node: yaml.Node) -> NoReturn:
        """Raises BadInput."""
        refuse(
            node,
            f"{node.tag}: such values are not read; write a text, a number, true, false, a list or keys",
        )


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
class StudySpec:
    """One YAML file, checked, with what it did not say; `flags`, and those of each task, with the ones from outside."""

    file: Path
    keys: dict[str, Any]
    flags: Flags
    tasks: dict[str, Flags]

    def flags_of(self, task: str, kind: str) -> Flags:
        """Of this study's flags for a task, those that a kind of job has."""
        mine = {
            name: x for name, x in self.tasks.get(task, self.flags).items() if name in FLAGS[kind]
        }
        filled = {name: x.replace("{task}", task) for name, x in mine.items() if isinstance(x, str)}
        return {"task": task, **mine, **filled}


def load_study(file: Path, given: Flags) -> list[StudySpec]:
    """A YAML file and those it includes; `given` overrides their flags. Raises BadInput: file, key, value, remedy.

    A file that is included several times with the same flags counts once.
    """
    found: dict[tuple[Path, str], StudySpec] = {}
    _include(file, given, (), found)
    studies = list(found.values())
    check_name(file, studies[0].keys["name"])
    return studies


def _include(
    file: Path, given: Flags, outer: tuple[Path, ...], found: dict[tuple[Path, str], StudySpec]
) -> None:
    """Add a file and those it includes to `found`, by place and flags from outside. Raises BadInput."""
    try:
        text, place = files.read_text(file, LONGEST), file.resolve()
        if place in outer:
            raise BadInput("include: the file includes itself; take it out")
        key = (place, json.dumps(given, sort_keys=True))
        if key in found:
            return
        if len(found) == MOST_FILES:
            raise BadInput(
                f"include: these are more than {MOST_FILES} files in all; put studies into one file"
            )
        found[key] = study = read(file, text, given)
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise BadInput(
            f"{file}: cannot be read as YAML ({problem}); give a study such as studies/demo.yaml"
        ) from problem
    for name in study.keys.get("include", ()):
        _include(file.parent / name, study.flags, (*outer, place), found)


def read(file: Path, text: str, given: Flags) -> StudySpec:
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
            raise BadInput(
                f"{where}: holds the character {ascii(each)[1:-1]}, which cannot be shown; take it out"
            )


def check_keys(where: str, given: Any, known: dict[str, tuple]) -> None:
    """Refuse unknown keys and wrong values. Raises BadInput."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}holds no keys; give some of {', '.join(known)}")
    for key, value in given.items():
        if key not in known:
            raise BadInput(
                f"{where}{brief(str(key))}: is no key of a study; take one of {', '.join(known)}"
            )
        check_texts(f"{where}{key}", value)
        twice = (
            [part for i, part in enumerate(value) if part in value[:i]]
            if isinstance(value, list)
            else []
        )
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
    needed = [
        f"transfer: {key}" for key in ("sources", "targets", "sparsity") if key not in transfer
    ]
    if (
        not {"transfer", "include"} & keys.keys()
        or {"controls", "rewind", *SPARSITIES} & keys.keys()
    ):
        needed += [key for key in ("sparsities", "tasks", "seeds") if key not in keys]
    if needed:
        raise BadInput(f"{needed[0]}: is missing; give it")
    for key in SPARSITIES:
        of, tasks = keys.get(key), set(keys.get("tasks", ()))
        if isinstance(of, dict) and (
            differ := set(of) - tasks or (key == "sparsities" and tasks - set(of))
        ):
            raise BadInput(f"{key}: {min(differ)} is in only one of it and tasks; make them agree")
    if "launcher" in keys and not shutil.which(keys["launcher"].split(" ")[0]):
        raise BadInput(
            f"launcher: {keys['launcher']!r} is no command here; install it, or leave it out"
        )


def fill_in(file: Path, keys: dict[str, Any], given: Flags) -> StudySpec:
    """A study from its keys and the flags from outside. Raises BadInput for flags that it cannot have."""
    own, flags = keys.get("tasks", {}), {**keys.get("flags", {}), **given}
    tasks = {
        task: {**flags, **(own[task] if isinstance(own, dict) else {}), **given} for task in own
    }
    for name, value in chain(flags.items(), *(mine.items() for mine in tasks.values())):
        if name in RESERVED:
            raise BadInput(f"--{name} {value}: the study's grid decides it; leave it out")
        if name not in FLAGS["imp"] | FLAGS["transfer"]:
            raise BadInput(
                f"--{name} {value}: is no flag of lth_scale.imp or lth_scale.transfer; see --help"
            )
    keys = {"name": file.stem, "note": "", "launcher": "", "seeds": [1], "controls": [], **keys}
    keys["note"] = " ".join(keys["note"].split())
    if len(keys["note"]) > LONGEST_NOTE:
        raise BadInput(f"note: has {len(keys['note']):,} characters; give at most {LONGEST_NOTE:,}")
    for key in SPARSITIES:
        value = keys.get(key, keys.get("sparsities", {}))
        keys[key] = value if isinstance(value, dict) else dict.fromkeys(tasks, value)
    keys["rewind"] = [
        str(point) for point in keys.get("rewind", ()) if point not in (0, "0")
    ]  # 0 is always there
    for point in keys["rewind"]:  # they name directories
        if not re.fullmatch(r"none|\d{1,18}|0?\.\d+|\d(\.\d+)?e-\d+", point, re.ASCII):
            raise BadInput(
                f"rewind: {brief(repr(point))}: give none, steps such as 100, or a fraction such as 0.05"
            )
    what = {
        "sources": [],
        "targets": [],
        "controls": [],
        "seeds": keys["seeds"],
        **keys.get("transfer", {}),
    }
    keys["transfer"] = {"source_seed": what["seeds"][0], **what}
    return StudySpec(file, keys, flags, tasks)
