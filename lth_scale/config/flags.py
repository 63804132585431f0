"""Flags as dataclass fields: each is declared once, with all that other modules need of it."""

import math
import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from lth_scale.config.defaults import DEFAULTS, EMBEDDED, GLUE_DEFAULTS
from lth_scale.config.errors import BadInput
from lth_scale.config.registry import REGISTRIES


class Group(StrEnum):
    """The sections of `--help`, in order."""

    DATA = "what to train"
    OWN_DATA = "your own data"
    SEARCH = "search"
    COMPARISON = "comparison"
    TRAINING = "training"
    PRECISION = "precision and speed"
    TRACKING = "checkpoints and tracking"
    HUB = "Hub"


class Range(NamedTuple):
    """The smallest and the largest value of a flag, and both in words unless they are integers."""

    least: float
    most: float
    words: str = ""

    def __str__(self) -> str:
        return self.words or f"{self.least:,} or more, at most {self.most:,}"


COUNT = Range(1, 10**9)
BATCH = Range(1, 2**16)
TOKENS = Range(1, 2**20)
FRACTION = Range(0, math.nextafter(1, 0), "a fraction, at least 0 and below 1, such as 0.7")
DELTA = Range(0, 1e9, "a number of 0 or more")  # in the unit of any metric
SEED = Range(0, 2**32 - 1, "an integer from 0 to 4294967295")


# Flags that take a name on the Hub or a local directory.
ON_HUB_OR_LOCAL = ("model_name_or_path", "dataset_name")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A command-line flag.

    choices: the accepted values, or () for any. registry: the kind of a registry whose names are
    the choices when the parser is built. positional: the value stands without the flag's name.
    cosmetic: it changes what is shown, not what is found, so that a run may continue with another
    value. method: it is part of how a search prunes. grid: the grid of a study sets it.
    """

    help: str
    group: Group | None = None
    metavar: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    registry: str = ""
    positional: bool = False
    cosmetic: bool = False
    method: bool = False
    grid: bool = False

    @property
    def path(self) -> bool:
        """True if the value is a local path."""
        return self.metavar in ("DIR", "FILE")

    @property
    def names(self) -> tuple[str, ...]:
        """The accepted values, or () for any."""
        return (*REGISTRIES[self.registry],) if self.registry else self.choices


def flag(help: str, default: Any = None, **facts: Any) -> Any:
    """A dataclass field that is a command-line flag; `facts` are the fields of `Flag`."""
    return field(default=default, metadata={"flag": Flag(help=help, **facts)})


(
    data_flag,
    own_data_flag,
    search_flag,
    comparison_flag,
    training_flag,
    precision_flag,
    tracking_flag,
    hub_flag,
) = (partial(flag, group=group) for group in Group)


def report_to_flag(**facts: Any) -> Any:
    """The flag --report_to: a tracker of a registry, else MLflow or none."""
    return flag("experiment tracker", "mlflow", choices=("mlflow", "none"), **facts)


def flags_of(kind: type) -> Iterator[tuple[Field[Any], Flag]]:
    """Iterate over the fields of a dataclass that are flags."""
    return ((spec, spec.metadata["flag"]) for spec in fields(kind) if "flag" in spec.metadata)


def value_type(spec: Field[Any]) -> tuple[type, bool]:
    """The type of a flag's value, and whether the flag takes several of them."""
    types = get_args(spec.type) if isinstance(spec.type, UnionType) else (spec.type,)
    kind = next(kind for kind in types if kind is not NoneType)
    return (get_args(kind)[0], True) if get_origin(kind) is tuple else (kind, False)


def default_text(spec: Field[Any]) -> str:
    """` (default: …)`, by task where tasks differ, or "" if the default is None or False."""
    if (usual := GLUE_DEFAULTS.get(spec.name)) is not None:
        tasks: dict[Any, list[str]] = {}
        for task, defaults in DEFAULTS.items():
            tasks.setdefault(defaults[spec.name], []).append(task)
        differing = [f"{' '.join(tasks[value])} {value}" for value in tasks if value != usual]
        return f" (default: {', '.join([str(usual), *differing])})"
    values = spec.default if isinstance(spec.default, tuple) else (spec.default,)
    shown = [str(value) for value in values if value not in (None, MISSING) and value is not False]
    return f" (default: {' '.join(shown)})" if shown else ""


def check_ranges(args: Any) -> None:
    """Raise BadInput if a value of a dataclass of flags is out of its range."""
    # A transfer's --seeds come before the --seed that follows from them.
    for spec, declared in reversed([*flags_of(type(args))]):
        value = getattr(args, spec.name)
        if not declared.range or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if not declared.range.least <= number <= declared.range.most:
                raise BadInput(f"--{spec.name} {number}: out of range; use {declared.range}")


def check_names(args: Any) -> None:
    """Raise BadInput if a value of a dataclass of flags is an earlier name of what it names."""
    for spec, declared in flags_of(type(args)):
        if not declared.registry:
            continue
        value = getattr(args, spec.name)
        for name in value if isinstance(value, tuple) else (value,):
            if refusal := REGISTRIES[declared.registry].refusal(name):
                raise BadInput(f"--{spec.name} {name}: {refusal}")


def is_local(name: str) -> bool:
    """True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()


def absolute_if_local(name: str) -> str:
    """A name on the Hub, or an absolute path if it is that of a local directory."""
    return os.path.abspath(name) if is_local(name) and name != EMBEDDED else name
