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
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief, is_printable

MOST_NOTE_CHARACTERS = 1000
SPARSITIES = ("sparsities", "control_sparsities", "rewind_sparsities")
REWIND_POINT = re.compile(r"none|\d{1,18}|0?\.\d+|\d(\.\d+)?e-\d+", re.ASCII)


def _check_distinct(values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} is given twice; remove one")
    return values


def _check_float(value: object) -> object:
    if isinstance(value, int):
        raise PydanticCustomError("float_type", "Input should be a fraction")
    return value


NotEmpty = Field(min_length=1)
Distinct = AfterValidator(_check_distinct)
Fraction = Annotated[float, BeforeValidator(_check_float)]
Fractions = Annotated[list[Fraction], NotEmpty]
Names = Annotated[list[str], NotEmpty, Distinct]
Seeds = Annotated[list[int], NotEmpty, Distinct]
FlagValues = dict[str, bool | int | float | str | Annotated[list[str], NotEmpty]]
Sparsities = Annotated[
    Annotated[Fractions, Distinct] | dict[str, Fractions],
    Field(examples=[[0.5, 0.7], {"mlm": [0.7], "sst2": [0.6]}]),
]
# Examples, for messages.
TASKS, SEEDS, CONTROLS = ["mlm", "sst2"], [1, 2, 3], ["random_mask", "reinit"]
SOME_FLAGS = {
    "max_steps": 100,
    "learning_rate": 1e-3,
    "optim": "sgd",
    "bf16": True,
    "ignore": ["pooler"],
}
A_TRANSFER = {
    "sources": ["mlm"],
    "targets": ["sst2"],
    "sparsity": 0.7,
    "seeds": [1],
    "source_seed": 1,
}


class _Part(BaseModel):
    """A part of a study file: no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TransferGrid(_Part):
    """Tickets of `sources`, searched with `source_seed`, and controls, trained on `targets`.

    seeds: of the trainings (default: the study's); source_seed: default the first of them.
    """

    sources: Names = Field(examples=[TASKS])
    targets: Names = Field(examples=[TASKS])
    sparsity: Fraction = Field(examples=[0.7])
    source_seed: int = Field(-1, examples=[1])
    seeds: Seeds = Field([], examples=[SEEDS])
    controls: Names = Field([], examples=[CONTROLS])


class StudySchema(_Part):
    """A study file as written."""

    name: str = Field("", examples=["mine"])
    note: str = Field("", examples=["one sentence"])
    launcher: str = Field("", examples=["accelerate launch -m"])
    include: Annotated[list[str], NotEmpty] = Field([], examples=[["demo.yaml"]])
    flags: FlagValues = Field({}, examples=[SOME_FLAGS])
    tasks: Names | dict[str, FlagValues] = Field(
        {}, examples=[TASKS, {"mlm": SOME_FLAGS, "sst2": {}}]
    )
    seeds: Seeds = Field([1], examples=[SEEDS])
    controls: Names = Field([], examples=[CONTROLS])
    rewind: Annotated[list[int | float | str], NotEmpty, Distinct] = Field(
        [], examples=[[0.05, 100, "none"]]
    )
    transfer: TransferGrid | None = Field(None, examples=[A_TRANSFER])
    sparsities: Sparsities = {}
    control_sparsities: Sparsities = {}
    rewind_sparsities: Sparsities = {}

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

    @field_validator("rewind")
    @classmethod
    def _check_points(cls, points: list[int | float | str]) -> list[int | float | str]:
        for point in map(str, points):
            if not REWIND_POINT.fullmatch(point):  # it becomes part of a directory's name
                raise ValueError(
                    f"{brief(repr(point))}: use none, steps such as 100, or a fraction such as 0.05"
                )
        return points

    @model_validator(mode="after")
    def _check_grid(self) -> "StudySchema":
        given = self.model_fields_set
        if not {"transfer", "include"} & given or {"controls", "rewind", *SPARSITIES} & given:
            for key in ("sparsities", "tasks", "seeds"):
                if key not in given:
                    raise ValueError(f"{key}: missing; add it")
        tasks = {*self.tasks}
        for key in SPARSITIES:
            values = getattr(self, key)
            if key not in given or not isinstance(values, dict):
                continue
            differing = {*values} - tasks or (key == "sparsities" and tasks - {*values})
            if differing:
                raise ValueError(
                    f"{key}: {min(differing)} is in only one of {key} and tasks; use the same tasks"
                )
        return self


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
        first, *others = problem.errors()
        key = str(first["loc"][0]) if first["loc"] else ""
        # All members of a union fail; ours has the message.
        same = [first, *(other for other in others if [*other["loc"][:1]] == [*first["loc"][:1]])]
        ours = next((error for error in same if error["type"] == "value_error"), first)
        where = f"line {lines[key]}: " if key in lines else ""
        raise BadInput(where + _message(ours, content)) from None


def _message(error: ErrorDetails, content: dict[str, Any]) -> str:
    """An error of pydantic as `key: value`, what is wrong and the remedy."""
    path = [str(part) for part in error["loc"]]
    model: type[_Part] = StudySchema
    if not path:
        return str(error["ctx"]["error"])
    prefix = ""
    if path[0] == "transfer" and len(path) > 1:
        content, model, prefix, path = content["transfer"], TransferGrid, "transfer: ", path[1:]
    key = path[0]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        keys = ", ".join(model.model_fields)
        return f"{prefix}{brief(key)}: unknown key; use one of {keys}"
    if error["type"] == "missing":
        return f"{prefix}{key}: missing; add it"
    if error["type"] == "value_error":
        return f"{prefix}{key}: {error['ctx']['error']}"
    examples = " or ".join(map(str, model.model_fields[key].examples or ()))
    return f"{prefix}{key}: {brief(repr(content[key]))}: invalid value; for example: {examples}"


def check_characters(where: str, value: Any) -> None:
    """Refuse characters that control a terminal or reorder a line, in keys and values.

    where: names the value in the message. Raises BadInput.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            check_characters(where, key)
            check_characters(f"{where}: {key}", entry)
    elif isinstance(value, list):
        for entry in value:
            check_characters(where, entry)
    elif isinstance(value, str):
        multiline = where in ("note", "launcher")
        for character in value:
            if not is_printable(character) and not (multiline and character == "\n"):
                raise BadInput(
                    f"{where}: contains the unprintable character {ascii(character)[1:-1]}; "
                    "remove it"
                )
