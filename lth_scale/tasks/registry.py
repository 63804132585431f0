"""Tasks, one line an entry, with the facts that other rooms need. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lth_scale.config.arguments import Training
from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    from lth_scale.tasks.base import Task


@dataclass(frozen=True)
class TaskKind:
    """A value of --task.

    load: flags → the task with its model, data and metric. dataset: its data on the Hub, name and
    configuration. metric: the first of its metrics, by which networks are compared.
    training_rows: as in Table 1 of Chen et al. 2020 (squad: windows of 384 tokens); None where a
    round is counted in steps. pipeline, auto_class: transformers' names for a network of its kind.
    """

    load: Callable[[Training], "Task"]
    dataset: tuple[str, str]
    metric: str
    training_rows: int | None
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"


TASKS: Registry[TaskKind] = Registry("task")


def _add_glue(name: str, metric: str, rows: int) -> None:
    load = lazy("lth_scale.tasks.glue:load_glue")
    TASKS.register(name, TaskKind(load, ("nyu-mll/glue", name), metric, rows))


_add_glue("mnli", "accuracy", 392_702)
_add_glue("qqp", "accuracy", 363_846)
_add_glue("stsb", "pearson", 5_749)
_add_glue("wnli", "accuracy", 635)
_add_glue("qnli", "accuracy", 104_743)
_add_glue("mrpc", "accuracy", 3_668)
_add_glue("rte", "accuracy", 2_490)
_add_glue("sst2", "accuracy", 67_349)
_add_glue("cola", "matthews_correlation", 8_551)
TASKS.register(
    "squad",
    TaskKind(
        lazy("lth_scale.tasks.squad:load_squad"),
        ("rajpurkar/squad", "plain_text"),
        "f1",
        88_641,
        pipeline="question-answering",
        auto_class="AutoModelForQuestionAnswering",
    ),
)
TASKS.register(
    "mlm",
    TaskKind(
        lazy("lth_scale.tasks.mlm:load_mlm"),
        ("wikimedia/wikipedia", "20231101.en"),
        "accuracy",
        None,
        pipeline="fill-mask",
        auto_class="AutoModelForMaskedLM",
    ),
)


def load_task(args: Training) -> "Task":
    """The task of --task with its model, tokenised data and metric. Raises BadInput."""
    return TASKS[args.task].load(args)
