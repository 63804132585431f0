"""A study's YAML file, and those that it includes."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.science.study_schema import StudySchema, TransferGrid, parse_study
from lth_scale.science.yaml_loader import load_yaml

Flags = dict[str, Any]
KINDS: dict[str, type[Training]] = {"imp": Arguments, "transfer": Transfer}
FLAGS = {kind: {spec.name for spec in fields(of)} for kind, of in KINDS.items()}
# Only one-shot pruning uses the scope of a transfer; `plans` adds a search's to it.
FLAGS["transfer"].discard("scope")
# The grid decides these.
RESERVED = flags_with("grid")
# Flags that take several values.
LISTS = flags_with("several") - RESERVED
MOST_BYTES, MOST_NAME_BYTES = 2**18, 200
# Of a study with all that it includes.
MOST_FILES, MOST_TRAININGS = 100, 10_000


@dataclass(frozen=True)
class StudySpec:
    """A study file. flags: of all jobs; tasks: the flags of each task; both with the overrides."""

    file: Path
    content: StudySchema
    flags: Flags
    tasks: dict[str, Flags]

    @property
    def name(self) -> str:
        """The study's name; the file's without one."""
        return self.content.name if "name" in self.content.model_fields_set else self.file.stem

    @property
    def transfer(self) -> TransferGrid | None:
        """The grid of transfers with its defaults."""
        if (grid := self.content.transfer) is None:
            return None
        seeds = grid.seeds or self.content.seeds
        source_seed = grid.source_seed if "source_seed" in grid.model_fields_set else seeds[0]
        return grid.model_copy(update={"seeds": seeds, "source_seed": source_seed})

    def sparsities(self, key: str = "sparsities") -> dict[str, list[float]]:
        """Sparsities by task; of controls and of rewound tickets they default to the tickets'."""
        return getattr(self.content, key if key in self.content.model_fields_set else "sparsities")

    def flags_of(self, task: str, kind: str) -> Flags:
        """The flags of a task's jobs of one kind."""
        flags = self.tasks.get(task, self.flags)
        known = {name: value for name, value in flags.items() if name in FLAGS[kind]}
        texts = {name: x.replace("{task}", task) for name, x in known.items() if isinstance(x, str)}
        return {"task": task, **known, **texts}


def load_study(file: Path, overrides: Flags) -> list[StudySpec]:
    """Read a study file and those that it includes; `overrides` take precedence over their flags.

    A file that is included several times with the same flags counts once. Raises BadInput: file,
    line, key, value, remedy.
    """
    studies: dict[tuple[Path, str], StudySpec] = {}
    _include(file, overrides, (), studies)
    first, *others = studies.values()
    check_name(file, first.name)
    return [first, *others]


def _include(
    file: Path,
    overrides: Flags,
    parents: tuple[Path, ...],
    studies: dict[tuple[Path, str], StudySpec],
) -> None:
    """Add a file and those it includes to `studies`, by path and overrides. Raises BadInput."""
    try:
        text, path = files.read_text(file, MOST_BYTES), file.resolve()
        if path in parents:
            raise BadInput("include: the file includes itself; remove it")
        key = (path, json.dumps(overrides, sort_keys=True))
        if key in studies:
            return
        if len(studies) == MOST_FILES:
            raise BadInput(f"include: more than {MOST_FILES} files; merge some of them")
        studies[key] = study = resolve_study(file, parse_study(*load_yaml(text)), overrides)
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise BadInput(
            f"{file}: cannot be read as YAML ({problem}); specify a study such as studies/demo.yaml"
        ) from problem
    for name in study.content.include:
        _include(file.parent / name, study.flags, (*parents, path), studies)


def check_name(file: Path, name: str) -> None:
    """Refuse a name that cannot be a directory's. Raises BadInput."""
    if re.fullmatch(r"[^-\s/][^/\n]*(?<![\s.])", name) and len(name.encode()) <= MOST_NAME_BYTES:
        return
    raise BadInput(
        f"{file}: name: {brief(repr(name))}: not a valid directory name; use 1 to "
        f"{MOST_NAME_BYTES} bytes without /, not starting with a space or -, "
        "not ending with a space or dot"
    )


def check_flags(flags: Flags) -> None:
    """Refuse flags that the grid decides, and unknown ones. Raises BadInput."""
    for name, value in flags.items():
        if name in RESERVED:
            raise BadInput(f"--{name} {value}: set by the study's grid; remove it")
        if name not in FLAGS["imp"] | FLAGS["transfer"]:
            raise BadInput(
                f"--{name} {value}: not a flag of lth_scale.imp or lth_scale.transfer; see --help"
            )


def resolve_study(file: Path, content: StudySchema, overrides: Flags) -> StudySpec:
    """Combine a study file with the overrides. Raises BadInput for flags that it cannot have."""
    flags = {**content.flags, **overrides}
    tasks = {task: {**flags, **own, **overrides} for task, own in content.tasks.items()}
    for part in (flags, *tasks.values()):
        check_flags(part)
    return StudySpec(file, content, flags, tasks)
