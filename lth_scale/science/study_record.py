"""study.json: the plan of a study, as `lth_scale.study` writes it and the report reads it."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from lth_scale.config import files
from lth_scale.config.checks import parse_rewind_step
from lth_scale.config.errors import BadInput
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS


def _one_of(names: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"not one of {', '.join(names)}")
        return name

    return AfterValidator(check)


def _check_inside(directory: str) -> str:
    path = PurePosixPath(directory)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("outside of the study's directory")
    return directory


def _check_rewind(point: str) -> str:
    if point != "none":
        parse_rewind_step(point, steps=None)
    return point


TaskName = Annotated[str, _one_of(TASKS)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    """A part of study.json. Keys that only other commands read are ignored."""

    model_config = ConfigDict(strict=True)


class SearchFlags(_Part):
    """The flags of a search that the report uses."""

    task: TaskName
    seed: int
    target_sparsity: Sparsity


class JobRecord(_Part):
    """A job; `directory` is relative to the study's. task: its name in the study, if recorded."""

    id: str
    kind: str
    task: str = ""
    directory: Annotated[str, AfterValidator(_check_inside)]
    flags: dict[str, object]

    @property
    def task_name(self) -> str:
        """The task as the study calls it."""
        return self.task or str(self.flags["task"])

    @field_validator("flags")
    @classmethod
    def _check_search(cls, flags: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        if info.data.get("kind") == "imp":
            SearchFlags.model_validate(flags)
        return flags


class ConditionRecord(_Part):
    """A planned training and the job whose results contain it."""

    task: TaskName
    seed: int
    sparsity: Sparsity
    control: Annotated[str, _one_of(CONTROLS)]
    source: TaskName | None
    rewind: Annotated[str, AfterValidator(_check_rewind)]
    job: str


class StudyRecord(_Part):
    """The contents of study.json. kinds: the tasks behind names of the study's own."""

    name: str
    note: str
    model: str
    kinds: dict[str, str] = {}
    tasks: list[TaskName]
    jobs: list[JobRecord]
    cells: list[ConditionRecord]

    @field_validator("kinds")
    @classmethod
    def _know_names(cls, kinds: dict[str, str]) -> dict[str, str]:
        for name, task in kinds.items():
            if task not in TASKS:
                raise ValueError(f"{task} is not one of {', '.join(TASKS)}")
            TASKS.alias(name, task)
        return kinds

    @field_validator("cells")
    @classmethod
    def _check_tasks(
        cls, cells: list[ConditionRecord], info: ValidationInfo
    ) -> list[ConditionRecord]:
        if unknown := {cell.task for cell in cells} - {*info.data.get("tasks", ())}:
            raise ValueError(f"{min(unknown)} is not one of the tasks")
        return cells


def parse_record(content: object) -> StudyRecord:
    """Validate the contents of study.json. Raises ValueError with the first invalid key."""
    try:
        return StudyRecord.model_validate(content)
    except ValidationError as problem:
        error = problem.errors()[0]
        key = ".".join(map(str, error["loc"])) or "its content"
        raise ValueError(f"{key}: {error['msg'].removeprefix('Value error, ')}") from None


def read_json(path: Path) -> object:
    """Read a JSON file of a study. Raises BadInput."""
    try:
        return files.read_json(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{path}: cannot be read ({problem}); run the study again or use another directory"
        ) from None
