"""A study's YAML file, and those that it includes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.science.study_schema import StudySchema, parse_study
from lth_scale.tasks.registry import TASKS

Flags = dict[str, Any]
KINDS: dict[str, type[Training]] = {"imp": Arguments, "transfer": Transfer}
FLAGS = {kind: {spec.name for spec in fields(of)} for kind, of in KINDS.items()}
# Only one-shot pruning uses the scope of a transfer; `plans` sets it to that of the searches.
# Only searches predict test rows.
FLAGS["transfer"] -= {"scope", "test_file"}
RESERVED = flags_with("grid")  # set by the grid
LISTS = flags_with("several") - RESERVED  # take several values
NAME = re.compile(r"\w[\w-]{0,60}", re.ASCII)  # of a task; part of a directory's name
MOST_BYTES, MOST_NAME_BYTES = 2**18, 200
# Of a study with all that it includes.
MOST_FILES, MOST_TRAININGS = 100, 10_000
MOST_CHARACTERS = 30  # of a number
TAG = "tag:yaml.org,2002:"
# Integers, floats and booleans as YAML 1.2 and people write them.
PLAIN = (
    r"[-+]?(0|[1-9]\d*)|[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?"
    r"|[-+]?\.(?i:inf)|\.(?i:nan)|(?i:true|false)"
)


@dataclass(frozen=True)
class StudySpec:
    """A study file. flags: of all jobs; tasks: the flags of each task; both with the overrides."""

    file: Path
    content: StudySchema
    flags: Flags
    tasks: dict[str, Flags]

    @property
    def name(self) -> str:
        """The study's name (default: the file's)."""
        return self.content.name if "name" in self.content.model_fields_set else self.file.stem

    def flags_of(self, task: str, kind: str) -> Flags:
        """The flags of a task's jobs of one kind; `task` may be a name of the file's own."""
        flags = {
            name: value.replace("{task}", task) if isinstance(value, str) else value
            for name, value in self.tasks.get(task, self.flags).items()
            if name in FLAGS[kind]
        }
        return {"task": task, **flags}


def load_study(file: Path, overrides: Flags) -> list[StudySpec]:
    """Read a study file and those that it includes; `overrides` take precedence over their flags.

    A file that is included several times with the same flags counts once. Raises BadInput.
    """
    studies: dict[tuple[Path, str], StudySpec] = {}
    _include(file, overrides, (), studies)
    first, *others = studies.values()
    name = first.name
    is_directory_name = re.fullmatch(r"[^-\s/][^/\n]*(?<![\s.])", name)
    if not is_directory_name or len(name.encode()) > MOST_NAME_BYTES:
        raise BadInput(
            f"{file}: name: {brief(repr(name))}: not a valid directory name; use 1 to "
            f"{MOST_NAME_BYTES} bytes without /, not starting with a space or -, "
            "not ending with a space or dot"
        )
    return [first, *others]


def _include(
    file: Path,
    overrides: Flags,
    parents: tuple[Path, ...],
    studies: dict[tuple[Path, str], StudySpec],
) -> None:
    """Add a file and those it includes to `studies`, by path and overrides."""
    try:
        text, path = files.read_text(file, MOST_BYTES), file.resolve()
        if path in parents:
            raise BadInput("include: the file includes itself; remove it")
        key = (path, json.dumps(overrides, sort_keys=True))
        if key in studies:
            return
        if len(studies) == MOST_FILES:
            raise BadInput(f"include: more than {MOST_FILES} files; merge some of them")
        studies[key] = study = _resolve(file, parse_study(*_load_yaml(text)), overrides)
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise BadInput(
            f"{file}: cannot be read as YAML ({problem}); use a study such as studies/demo.yaml"
        ) from problem
    for name in study.content.include:
        _include(file.parent / name, study.flags, (*parents, path), studies)


def _resolve(file: Path, content: StudySchema, overrides: Flags) -> StudySpec:
    flags = {**content.flags, **overrides}
    tasks = {task: {**flags, **own, **overrides} for task, own in content.tasks.items()}
    _name_tasks(tasks)
    for name, value in (flag for part in (flags, *tasks.values()) for flag in part.items()):
        if name in RESERVED and not (name == "task" and name not in flags):
            raise BadInput(f"--{name} {value}: set by the study's grid; remove it")
        if name not in FLAGS["imp"] | FLAGS["transfer"]:
            raise BadInput(
                f"--{name} {value}: not a flag of lth_scale.imp or lth_scale.transfer; see --help"
            )
    return StudySpec(file, content, flags, tasks)


def _name_tasks(tasks: Mapping[str, Flags]) -> None:
    """Know the names that the file gives to kinds of tasks. Raises BadInput."""
    for name, flags in tasks.items():
        if "task" not in flags:
            continue
        kind = flags["task"]
        if not NAME.fullmatch(name):
            raise BadInput(f"tasks: {brief(name)}: not a name; use letters, digits, - and _")
        try:
            TASKS.alias(name, kind)
        except ValueError:
            raise BadInput(f"tasks: {name}: is a task of its own; use another name") from None
        except KeyError:
            raise BadInput(
                f"tasks: {name}: task: {brief(str(kind))}: no such task; use one of "
                f"{', '.join(task for task in TASKS if task not in TASKS.aliases)}"
            ) from None


class PlainLoader(yaml.SafeLoader):
    """A loader without the surprises of YAML 1.1.

    Refuses duplicate keys, aliases, a few of which can expand to more than fits in memory, and
    numbers, booleans and dates that only YAML 1.1 reads as such (`010`, `yes`, `2:4`). Raises
    BadInput with the line, or a YAMLError.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event().anchor
            raise BadInput(f"*{alias}: aliases are not supported; write out the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse merged and duplicate keys."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == f"{TAG}merge":
                _refuse(key, "<<: merging keys is not supported; write them out")
            name = key.value if isinstance(key, yaml.ScalarNode) else "a key"
            if name in first:
                _refuse(key, f"{name}: duplicate key, first in line {first[name]}; remove one")
            first[name] = _line(key)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A number, boolean or date that is written as in PLAIN."""
        text = node.value
        if len(text) > MOST_CHARACTERS:
            _refuse(
                node,
                f"{text[:MOST_CHARACTERS]}…: a number of {len(text)} characters; "
                f"use at most {MOST_CHARACTERS}",
            )
        value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        if not re.fullmatch(PLAIN, text, re.ASCII):
            decimal = [str(int(text))] if text.isdigit() else []
            spellings = dict.fromkeys([*decimal, json.dumps(value, default=str), f'"{text}"'])
            _refuse(
                node,
                f"{text}: ambiguous: YAML 1.1 reads it as {value}; "
                f"write one of {', '.join(spellings)}",
            )
        return value


for kind in ("int", "float", "bool", "timestamp"):
    PlainLoader.add_constructor(f"{TAG}{kind}", PlainLoader.construct_plain)


def _load_yaml(text: str) -> tuple[Any, Mapping[str, int]]:
    """The document in `text`, and the line of each of its top-level keys."""
    loader = PlainLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None, {}
    keys = node.value if isinstance(node, yaml.MappingNode) else ()
    return loader.construct_document(node), {str(key.value): _line(key) for key, _ in keys}


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _refuse(node: yaml.Node, why: str) -> NoReturn:
    raise BadInput(f"line {_line(node)}: {why}")
