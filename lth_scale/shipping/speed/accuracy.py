"""The accuracy of each backend, by the metric of the network's task."""

import tempfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from lth_scale.config.arguments import Arguments
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import resolve
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.export.source import ExportSource
from lth_scale.shipping.speed.inputs import input_names, select_inputs, text_inputs
from lth_scale.shipping.speed.measure import Row, reason
from lth_scale.tasks import registry
from lth_scale.tasks.loading import quiet
from lth_scale.tasks.mlm import CHOSEN
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Task
from lth_scale.tracking.console import print_line

EVAL_BATCH, CALIBRATION = 32, 64  # examples


class BackendModel(nn.Module):
    """A backend as the model of a task's `loss`: its outputs have the names of the model's."""

    def __init__(self, backend: Forward, outputs: list[str], inputs: list[str]):
        super().__init__()
        self.backend, self.outputs, self.inputs = backend, outputs, inputs
        setattr(self, CHOSEN, None)

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """Return the outputs in fp32 on the CPU.

        Of MLM's logits, only those at the chosen positions: (1, chosen, vocabulary).
        """
        outputs = self.backend(select_inputs(batch, self.inputs))
        named: dict[str, Any] = {
            name: output.cpu().float() for name, output in zip(self.outputs, outputs, strict=True)
        }
        if (chosen := getattr(self, CHOSEN)) is not None:
            named["logits"] = named["logits"][chosen].unsqueeze(0)
        return SimpleNamespace(loss=None, **named)


def load_task(source: ExportSource, flags: dict[str, Any]) -> tuple[Task | None, str]:
    """Return the task to score a network on, or None and a line that says why there is none.

    flags: task, dataset_path and max_eval_samples, as far as they were set; the others are those of
    the network's run. Raises BadInput if flags that were set cannot be followed.
    """
    name = flags.get("task") or source.run.get("task")
    remedy = "set --task and --dataset_path to measure its accuracy"
    if not name and "dataset_path" in flags:
        raise BadInput(
            f"--dataset_path {flags['dataset_path']}: the task of {source.path} is unknown; "
            "set --task"
        )
    if not name:
        return None, f"{source.path}: its task is unknown; {remedy}"
    of_run = ("dataset_path", "max_seq_length", "doc_stride")
    inherited = of_run if name == source.run.get("task") else ()
    values = {key: source.run[key] for key in inherited if source.run.get(key) is not None}
    values |= {**flags, "task": name, "max_train_samples": CALIBRATION}
    try:
        return _load_task(source, values), ""
    except BadInput as problem:
        if {"task", "dataset_path"} & flags.keys():
            raise
        return None, f"{source.path}: no accuracy on {name} ({problem}); {remedy}"


def _load_task(source: ExportSource, values: dict[str, Any]) -> Task:
    flag = f"--task {values['task']}"
    if source.tokenizer is None:
        raise BadInput(f"{flag}: {source.path} has no tokenizer; save one beside the model")
    architecture = type(source.model).__name__
    head = TASKS[values["task"]].auto_class.removeprefix("AutoModel")
    if not architecture.endswith(head):
        raise BadInput(
            f"{flag}: {source.path} is a {architecture}; use a network trained on it, a …{head}"
        )
    with tempfile.TemporaryDirectory() as folder, quiet():
        source.model.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
        try:
            task = registry.load_task(resolve({**values, "model_name_or_path": folder}, Arguments))
        except BadInput as problem:
            raise BadInput(str(problem).replace(folder, str(source.path))) from problem
    task.model = source.model
    return task


def calibration_inputs(source: ExportSource, task: Task) -> list[dict[str, Tensor]]:
    """Return the first training examples of the task, one a batch."""
    return [select_inputs(task.eval_collate([row]), input_names(source)) for row in task.train]


def score(
    source: ExportSource, task: Task | None, backends: Mapping[str, Forward]
) -> dict[str, Row]:
    """Return by backend `accuracy`, the task's metrics, or `accuracy_failed`, the reason."""
    rows: dict[str, Row] = {}
    if task is None:
        return rows
    for name, backend in backends.items():
        print_line(f"{source.path}: scoring {name}")
        try:
            rows[name] = {"accuracy": _evaluate(source, task, backend)}
        except Exception as problem:
            rows[name] = {"accuracy_failed": reason(problem)}
    return rows


@torch.no_grad()
def _evaluate(source: ExportSource, task: Task, backend: Forward) -> dict[str, float]:
    outputs = source.model(**text_inputs(source, 1, 8)).items()
    names = [name for name, value in outputs if isinstance(value, Tensor)]
    model = BackendModel(backend, names, input_names(source))
    order, rows = [*range(len(task.validation))], []
    if task.grouped:
        lengths = [len(ids) for ids in task.validation["input_ids"]]
        order.sort(key=lambda i: -lengths[i])
    for start in range(0, len(order), EVAL_BATCH):
        batch = task.eval_collate([task.validation[i] for i in order[start : start + EVAL_BATCH]])
        rows.append(task.rows(task.loss(model, batch)[1], batch))
    return {name: float(value) for name, value in task.score(numpy.concatenate(rows)).items()}
