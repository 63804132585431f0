"""The inputs of a network, and its accuracy in each backend by the metric of its task."""

import tempfile
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from lth_scale.config.arguments import Arguments
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import resolve
from lth_scale.shipping.export.formats.onnx import Forward
from lth_scale.shipping.export.source import ExportSource, longest, sentences, vocabulary_size
from lth_scale.tasks import registry
from lth_scale.tasks.inputs import has_segments
from lth_scale.tasks.libraries import quiet
from lth_scale.tasks.mlm import CHOSEN, pack
from lth_scale.tasks.task import Batch, Task

EVAL_BATCH, CALIBRATION = 32, 64  # examples to score at a time, and to calibrate on
# Flags of the network's own run: the seed decides which rows are split off for validation.
DATA_FLAGS = ("dataset_path", "max_seq_length", "doc_stride", "seed", *registry.OWN_DATA)
# What --dataset_path replaces.
WAYS = ("train_file", "validation_file", "dataset_name", "dataset_config_name")


def text_inputs(source: ExportSource, batch: int, length: int) -> Batch:
    """Return inputs of shape (batch, length), int64: sentences of SST-2 without padding.

    Without a tokenizer they are random ids of a fixed seed. Raises BadInput if `length` is too long
    for the model.
    """
    limit = longest(source.model, source.tokenizer)
    if length > limit:
        raise BadInput(
            f"--sequence_length {length}: {source.path} takes {limit} tokens at most; "
            "use a shorter sequence"
        )
    if source.tokenizer:
        blocks = pack({"text": sentences()}, source.tokenizer, length)["input_ids"]
        ids = torch.tensor([blocks[i % len(blocks)] for i in range(batch)])
    else:
        seeded = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary_size(source.model), (batch, length), generator=seeded)
    return select_inputs({"input_ids": ids}, source)


def select_inputs(batch: Batch, source: ExportSource) -> Batch:
    """Return what the network takes; a missing attention mask is all ones, token types zeros."""
    ids = batch["input_ids"]
    defaults = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    defaults |= {"token_type_ids": torch.zeros_like(ids)} if has_segments(source.model) else {}
    return {name: batch.get(name, default) for name, default in defaults.items()}


def load_task(source: ExportSource, flags: dict[str, Any]) -> tuple[Task | None, str]:
    """Return the task to score a network on, or None and why there is none, in one line.

    flags: task, dataset_path and max_eval_samples, if set; the others are those of the network's
    run. Raises BadInput if the task of the flags cannot be loaded.
    """
    own = source.run.get("task")
    name = flags.get("task") or own
    remedy = "set --task and --dataset_path to measure its accuracy"
    if not name:
        if path := flags.get("dataset_path"):
            raise BadInput(
                f"--dataset_path {path}: the task of {source.path} is unknown; set --task"
            )
        return None, f"{source.path}: its task is unknown; {remedy}"
    inherited = {key: source.run.get(key) for key in DATA_FLAGS if name == own}
    values = {key: value for key, value in inherited.items() if value is not None}
    values.pop("test_file", None)
    if "dataset_path" in flags:
        values = {key: value for key, value in values.items() if key not in WAYS}
    values |= flags | {"task": name, "max_train_samples": CALIBRATION}
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
    head = registry.TASKS[values["task"]].auto_class.removeprefix("AutoModel")
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


class BackendModel(nn.Module):
    """A backend as the model of a task's `loss`, with the names of the network's outputs."""

    def __init__(self, backend: Forward, source: ExportSource):
        super().__init__()
        self.backend, self.source = backend, source
        outputs = source.model(**text_inputs(source, 1, 8)).items()
        self.outputs = [name for name, value in outputs if isinstance(value, Tensor)]
        setattr(self, CHOSEN, None)

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """Return the outputs, fp32 on the CPU; of MLM's logits (1, chosen, vocabulary) only."""
        outputs = self.backend(select_inputs(batch, self.source))
        named = {
            name: output.cpu().float() for name, output in zip(self.outputs, outputs, strict=True)
        }
        if (chosen := getattr(self, CHOSEN)) is not None:
            named["logits"] = named["logits"][chosen].unsqueeze(0)
        return SimpleNamespace(loss=None, **named)


@torch.no_grad()
def score(source: ExportSource, task: Task, backend: Forward) -> dict[str, float]:
    """Return the metrics of a backend on the task's validation data."""
    model = BackendModel(backend, source)
    order, rows = [*range(len(task.validation))], []
    if task.grouped:
        lengths = [len(ids) for ids in task.validation["input_ids"]]
        order.sort(key=lambda i: -lengths[i])
    while order:
        batch = task.eval_collate([task.validation[i] for i in order[:EVAL_BATCH]])
        rows.append(task.rows(task.loss(model, batch)[1], batch))
        del order[:EVAL_BATCH]
    return {name: float(value) for name, value in task.score(numpy.concatenate(rows)).items()}
