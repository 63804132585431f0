"""The schema of a study's YAML file."""

import re
import shutil
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief, is_printable

MOST_NOTE_CHARACTERS = 1000
SPARSITIES = ("sparsities", "control_sparsities", "rewind_sparsities")
REWIND_POINT = re.compile(r"none|\d{1,18}|0?\.\d+|\d(\.\d+)?e-\d+", re.ASCII)
# Examples of values, for messages.
FLAGS = {"max_steps": 100, "learning_rate": 1e-3, "optim": "sgd", "bf16": True, "ignore": ["key"]}
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "name": ("mine",),
    "note": ("one sentence",),
    "launcher": ("accelerate launch -m",),
    "include": (["demo.yaml"],),
    "flags": (FLAGS,),
    "tasks": (["mlm", "sst2"], {"mlm": FLAGS, "sst2": {}}),
    "seeds": ([1, 2, 3],),
    "controls": (["random_mask", "reinit"],),
    "rewind": ([0.05, 100, "none"],),
    "transfer": ({"sources": ["mlm"], "targets": ["sst2"], "sparsity": 0.7, "source_seed": 1},),
    **dict.fromkeys(SPARSITIES, ([0.5, 0.7], {"mlm": [0.7], "sst2": [0.6]})),
    **dict.fromkeys(("sources", "targets"), (["mlm", "sst2"],)),
    "sparsity": (0.7, [0.5, 0.7]),
    "source_seed": (1,),
}


def _check_distinct(values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} is given twice; remove one")
    return values


def _check_float(value: object) -> object:
    if isinstance(value, int):
        raise PydanticCustomError("float_type", "Input should be a fraction")
    return value


def _check_points(points: list[str]) -> list[str]:
    """Return the points other than θ₀. Raises ValueError for one that is not valid."""
    for point in points:
        if not REWIND_POINT.fullmatch(point):  # it becomes part of a directory's name
            raise ValueError(
                f"{brief(repr(point))}: use none, steps such as 100, or a fraction such as 0.05"
            )
    return [point for point in points if point != "0"]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


NotEmpty = Field(min_length=1)
Distinct = AfterValidator(_check_distinct)
Fraction = Annotated[float, BeforeValidator(_check_float)]
RewindPoint = Annotated[str, BeforeValidator(lambda x: str(x) if type(x) in (int, float) else x)]
RewindPoints = Annotated[list[RewindPoint], NotEmpty, Distinct, AfterValidator(_check_points)]
Names = Annotated[list[str], NotEmpty, Distinct]
Seeds = Annotated[list[int], NotEmpty, Distinct]
FlagValues = dict[str, bool | int | float | str | Annotated[list[str], NotEmpty]]
Sparsities = dict[str, Annotated[list[Fraction], NotEmpty]]


class _Part(BaseModel):
    """A part of a study file: no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TransferGrid(_Part):
    """Tickets of `sources`, searched with `source_seed`, and controls, trained on `targets`.

    sparsity: one or several. seeds: of the trainings (default: the study's). source_seed: by
    default the first of them. rewind: without θ₀, the points of searches on `sources` whose tickets
    and weights are trained on the other targets too.
    """

    sources: Names
    targets: Names
    sparsity: Annotated[list[Fraction], BeforeValidator(_as_list), NotEmpty, Distinct]
    seeds: Seeds = []
    source_seed: int = -1
    controls: Names = []
    rewind: RewindPoints = []


class StudySchema(_Part):
    """A study file: tasks and sparsities by task, `rewind` without θ₀, defaults filled in."""

    name: str = ""
    note: str = ""
    launcher: str = ""
    include: Annotated[list[str], NotEmpty] = []
    flags: FlagValues = {}
    tasks: dict[str, FlagValues] = {}
    seeds: Seeds = [1]
    controls: Names = []
    rewind: RewindPoints = []
    transfer: TransferGrid | None = None
    sparsities: Sparsities = {}
    control_sparsities: Sparsities = {}
    rewind_sparsities: Sparsities = {}

    @field_validator("tasks", mode="before")
    @classmethod
    def _expand_tasks(cls, tasks: object) -> object:
        return _by_task(tasks, tasks, {})

    @field_validator(*SPARSITIES, mode="before")
    @classmethod
    def _expand_sparsities(cls, values: object, info: ValidationInfo) -> object:
        return _by_task(values, [*info.data.get("tasks", ())], values)

    @field_validator("transfer", mode="before")
    @classmethod
    def _check_keys(cls, transfer: object) -> object:
        if not isinstance(transfer, dict):
            raise PydanticCustomError("dict_type", "Input should have keys")
        return transfer

    @field_validator("note")
    @classmethod
    def _join_lines(cls, note: str) -> str:
        note = " ".join(note.split())
        if len(note) > MOST_NOTE_CHARACTERS:
            raise ValueError(f"has {len(note):,} characters; use at most {MOST_NOTE_CHARACTERS:,}")
        return note

    @field_validator("launcher")
    @classmethod
    def _check_command(cls, launcher: str) -> str:
        if not shutil.which(launcher.split(" ")[0]):
            raise ValueError(f"{launcher!r}: command not found; install it or remove the key")
        return launcher

    @model_validator(mode="after")
    def _check_grid(self) -> "StudySchema":
        present = self.model_fields_set
        if not {"transfer", "include"} & present or {"controls", "rewind", *SPARSITIES} & present:
            for key in ("sparsities", "tasks", "seeds"):
                if key not in present:
                    raise ValueError(f"{key}: missing; add it")
        for key in present.intersection(SPARSITIES):
            tasks, planned = {*self.tasks}, {*getattr(self, key)}
            if differing := planned - tasks or (key == "sparsities" and tasks - planned):
                raise ValueError(
                    f"{key}: {min(differing)} is in only one of {key} and tasks; use the same tasks"
                )
        for key in {*SPARSITIES} - present:
            setattr(self, key, self.sparsities)
        if grid := self.transfer:
            grid.seeds = grid.seeds or self.seeds
            if "source_seed" not in grid.model_fields_set:
                grid.source_seed = grid.seeds[0]
        return self


def _by_task(value: object, tasks: object, entry: object) -> object:
    """Convert a list to a mapping from each task to `entry`."""
    if not isinstance(value, list) or not isinstance(tasks, list):
        return value
    if not value or not all(isinstance(task, str) for task in tasks):
        raise PydanticCustomError("list_type", "Input should be a list")
    _check_distinct(value)
    return dict.fromkeys(tasks, entry)


def parse_study(content: Any, lines: Mapping[str, int]) -> StudySchema:
    """Validate the content of a study file. Raises BadInput: line, key, value, remedy."""
    if not isinstance(content, dict):
        keys = ", ".join(StudySchema.model_fields)
        raise BadInput(f"no keys: {brief(repr(content))}; use some of {keys}")
    for key, value in content.items():
        check_characters(str(key), value)
    try:
        return StudySchema.model_validate(content)
    except ValidationError as problem:
        error = problem.errors()[0]
        key = str(error["loc"][0]) if error["loc"] else ""
        where = f"line {lines[key]}: " if key in lines else ""
        raise BadInput(where + _message(error, content)) from None


def _message(error: ErrorDetails, content: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    if not path:
        return str(error["ctx"]["error"])
    model: type[_Part] = StudySchema
    prefix = ""
    if path[0] == "transfer" and len(path) > 1:
        content, model, prefix, path = content["transfer"], TransferGrid, "transfer: ", path[1:]
    key, kind = path[0], error["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        known = ", ".join(model.model_fields)
        return f"{prefix}{brief(key)}: unknown key; use one of {known}"
    if kind == "missing":
        return f"{prefix}{key}: missing; add it"
    if kind == "value_error":
        return f"{prefix}{key}: {error['ctx']['error']}"
    examples = " or ".join(map(str, EXAMPLES[key]))
    return f"{prefix}{key}: {brief(repr(content[key]))}: invalid value; for example: {examples}"


def check_characters(where: str, value: Any) -> None:
    """Raise BadInput for unprintable characters in a value, its keys and entries.

    where: names the value in the message.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            check_characters(where, key)
            check_characters(f"{where}: {key}", entry)
    elif isinstance(value, list):
        for entry in value:
            check_characters(where, entry)
    elif isinstance(value, str):
        for bad in (ascii(x)[1:-1] for x in value if not is_printable(x)):
            raise BadInput(f"{where}: contains the unprintable character {bad}; remove it")
