"""One network in every engine: built, timed, compared, and scored by its task's own metric."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from lth_scale.config.arguments import Arguments
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import resolve
from lth_scale.shipping.export.onnx import Run
from lth_scale.shipping.export.source import Source, longest, sentences
from lth_scale.shipping.speed.engines import BACKENDS, EAGER, Setup, missing
from lth_scale.shipping.speed.measure import Timing, measure, pinned, ratio, reason, spread, verdict
from lth_scale.tasks import registry
from lth_scale.tasks.library_logs import quiet
from lth_scale.tasks.mlm import CHOSEN
from lth_scale.tasks.mlm_blocks import pack
from lth_scale.tasks.probes import has_segments
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Batch, Task
from lth_scale.tracking.console import say

EVAL_BATCH, CALIBRATION = 32, 64  # examples
LENGTH = 128  # tokens
Row = dict[str, Any]


class Facade(nn.Module):
    """What a task's `loss` takes for its model: an engine, whose outputs get the names they have in the model."""

    def __init__(self, run: Run, outputs: list[str], inputs: list[str]):
        super().__init__()
        self.run, self.outputs, self.inputs = run, outputs, inputs
        setattr(self, CHOSEN, None)

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """The outputs in fp32 on the CPU; of MLM's logits those of the chosen positions, as (1, chosen, vocabulary)."""
        found = self.run(fill(batch, self.inputs))
        named: dict[str, Any] = {
            name: each.cpu().float() for name, each in zip(self.outputs, found, strict=True)
        }
        if (chosen := getattr(self, CHOSEN)) is not None:
            named["logits"] = named["logits"][chosen].unsqueeze(0)
        return SimpleNamespace(loss=None, **named)


def fill(batch: Batch, inputs: list[str]) -> Batch:
    """The named inputs of a batch; an attention mask that is missing is all ones, token types are zeros."""
    ids = batch["input_ids"]
    return {
        name: batch[name] if name in batch else torch.full_like(ids, name == "attention_mask")
        for name in inputs
    }


def input_names(source: Source) -> list[str]:
    """What the network is given: token types only where there are two of them."""
    return [
        "input_ids",
        "attention_mask",
        *(["token_type_ids"] if has_segments(source.model) else []),
    ]


def load_task(source: Source, given: dict[str, Any]) -> tuple[Task | None, str]:
    """The task to score a source on, or None and a line why not. Raises BadInput where the flags cannot be followed.

    given: task, dataset_path and max_eval_samples, each absent where it was not given; else they are the run's.
    """
    name, how = (
        given.get("task") or source.run.get("task"),
        "give --task and --dataset_path to see its accuracy",
    )
    if not name and "dataset_path" in given:
        raise BadInput(
            f"--dataset_path {given['dataset_path']}: of which task is not known; give --task"
        )
    if not name:
        return None, f"{source.path}: its task is not known; {how}"
    kept = (
        ("dataset_path", "max_seq_length", "doc_stride") if name == source.run.get("task") else ()
    )
    values = {key: source.run[key] for key in kept if source.run.get(key) is not None} | given
    try:
        return _load_task(source, {**values, "task": name, "max_train_samples": CALIBRATION}), ""
    except BadInput as problem:
        if {"task", "dataset_path"} & given.keys():
            raise
        return None, f"{source.path}: no accuracy on {name} ({problem}); {how}"


def _load_task(source: Source, values: dict[str, Any]) -> Task:
    if source.tokenizer is None:
        raise BadInput(
            f"--task {values['task']}: {source.path} has no tokenizer; save one beside the model"
        )
    kind, head = (
        type(source.model).__name__,
        TASKS[values["task"]].auto_class.removeprefix("AutoModel"),
    )
    if not kind.endswith(head):
        raise BadInput(
            f"--task {values['task']}: {source.path} is a {kind}; give a network trained on it, a …{head}"
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


def text_inputs(source: Source, batch: int, length: int) -> Batch:
    """int64 (batch, length): sentences of SST-2 one after another, cut to exactly `length` tokens, without padding.

    Without a tokenizer they are ids drawn with a fixed seed. Raises BadInput where the model takes fewer tokens.
    """
    limit = longest(source.model, source.tokenizer)
    if length > limit:
        raise BadInput(
            f"--sequence_length {length}: {source.path} takes {limit} tokens at most; give that or fewer"
        )
    if source.tokenizer is None:
        embeddings: Any = source.model.get_input_embeddings()
        ids = torch.randint(
            embeddings.num_embeddings, (batch, length), generator=torch.Generator().manual_seed(0)
        )
    else:
        blocks = pack({"text": sentences()}, source.tokenizer, length)["input_ids"]
        ids = torch.tensor([blocks[i % len(blocks)] for i in range(batch)])
    return fill({"input_ids": ids}, input_names(source))


def time_target(source: Source, task: Task | None, args: Any, device: str) -> list[dict[str, Any]]:
    """A cell for each shape and number of threads of `args` (a `Speed`): what was measured, and `rows` by engine."""
    names = [name for name in BACKENDS if not args.backends or name in (EAGER, *args.backends)]
    lengths = args.sequence_length or (min(LENGTH, longest(source.model, source.tokenizer)),)
    shapes = [(batch, length) for length in lengths for batch in args.batch_size]
    examples = [text_inputs(source, *shape) for shape in shapes]
    if task:
        examples = [fill(task.eval_collate([row]), input_names(source)) for row in task.train]
    network = {"target": str(source.path), "sparsity": source.sparsity, "pruned": source.pruned}
    cells, scores = [], dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            say(f"{source.path}: building {len(names)} engines, threads: {threads}")
            with pinned(threads):
                runs, rows = build(
                    names, Setup(source.model, examples, threads, Path(folder), device)
                )
                for batch, length in shapes:
                    say(f"{source.path}: timing {batch} × {length} tokens")
                    found = time_cell(runs, text_inputs(source, batch, length), args, device)
                    shape = {
                        "batch_size": batch,
                        "sequence_length": length,
                        "threads": threads,
                        "device": device,
                    }
                    every = {name: {**rows[name], **found.get(name, {})} for name in names}
                    cells.append(
                        {
                            **network,
                            "prunable": source.prunable,
                            **shape,
                            "best": best(every),
                            "rows": every,
                        }
                    )
                scores |= score(
                    source, task, {name: run for name, run in runs.items() if name not in scores}
                )
    for cell in cells:
        for name, row in cell["rows"].items():
            row |= scores.get(name, {}) if "ms" in row else {}
    return cells


def build(names: list[str], setup: Setup) -> tuple[dict[str, Run], dict[str, Row]]:
    """The engines that can be had, and a row for each name: status `timed`, `skipped` or `failed`, and why."""
    runs, rows = {}, {}
    for name in names:
        backend = BACKENDS[name]
        why, status = missing(backend, setup), "skipped"
        if not why:
            try:
                runs[name], status = backend.build(setup), "timed"
            except Exception as problem:  # engines raise every kind, and the others go on
                why, status = reason(problem), "failed"
        rows[name] = {
            "status": status,
            "why": why,
            "precision": backend.precision,
            "sparse": backend.sparse,
        }
    return runs, rows


def time_cell(runs: Mapping[str, Run], inputs: Batch, args: Any, device: str) -> dict[str, Row]:
    """By engine: times, ratios and the difference of logits on one batch; or status `failed` and why."""
    torch.compiler.reset()  # or shapes seen before make this one's code a general one
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}

    def call(run: Run) -> None:
        run(inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    timings, failed = measure(
        {name: partial(call, run) for name, run in runs.items()},
        args.repeats,
        args.warmup,
        args.seed,
    )
    rows: dict[str, Row] = {name: {"status": "failed", "why": why} for name, why in failed.items()}
    reference = runs[EAGER](inputs) if EAGER in timings else ()
    for name, timing in timings.items():
        wall, cpu = ([1000 * x for x in seconds] for seconds in (timing.wall, timing.cpu))
        rows[name] = {"ms": spread(wall), "cpu_ms": spread(cpu), "samples_ms": wall}
        rows[name] |= {"difference": difference(reference, runs[name](inputs))} if reference else {}
    return compare(rows, timings)


def compare(rows: dict[str, Row], timings: Mapping[str, Timing]) -> dict[str, Row]:
    """Adds × eager, × the best dense engine, and × the best dense one of the same precision, with their verdicts."""
    fastest = best({name: {**vars(BACKENDS[name]), **rows[name]} for name in timings})
    for name, timing in timings.items():
        references = {
            "eager": EAGER,
            "best": fastest.get("any", ""),
            "same": fastest.get(BACKENDS[name].precision, ""),
        }
        for key, other in references.items():
            if other in timings:
                found = ratio(timings[other], timing)
                said = "the best dense" if other == name else verdict(found)
                rows[name] |= {f"times_{key}": found, f"verdict_{key}": said}
    return rows


def best(rows: Mapping[str, Row]) -> dict[str, str]:
    """The fastest dense engine: of `any` precision, and of each."""
    dense = sorted(
        (row["ms"][0], name) for name, row in rows.items() if "ms" in row and not row["sparse"]
    )
    return {key: name for _, name in reversed(dense) for key in ("any", rows[name]["precision"])}


def difference(reference: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """The largest difference in any output, relative to the largest magnitude of that output in the reference."""
    pairs = [(a.float().cpu(), b.float().cpu()) for a, b in zip(reference, found, strict=True)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def score(source: Source, task: Task | None, runs: Mapping[str, Run]) -> dict[str, Row]:
    """The task's metrics through each engine, or why they could not be had; nothing without a task."""
    rows: dict[str, Row] = {}
    if task is None:
        return rows
    for name, run in runs.items():
        say(f"{source.path}: scoring {name}")
        try:
            rows[name] = {"accuracy": _score(source, task, run)}
        except Exception as problem:
            rows[name] = {"accuracy_failed": reason(problem)}
    return rows


@torch.no_grad()
def _score(source: Source, task: Task, run: Run) -> dict[str, float]:
    outputs = [
        name
        for name, each in source.model(**text_inputs(source, 1, 8)).items()
        if isinstance(each, Tensor)
    ]
    order, model, found = (
        [*range(len(task.validation))],
        Facade(run, outputs, input_names(source)),
        [],
    )
    if task.grouped:
        lengths = [len(ids) for ids in task.validation["input_ids"]]
        order.sort(key=lambda i: -lengths[i])
    for start in range(0, len(order), EVAL_BATCH):
        batch = task.eval_collate([task.validation[i] for i in order[start : start + EVAL_BATCH]])
        found.append(task.rows(task.loss(model, batch)[1], batch))
    return {name: float(value) for name, value in task.score(numpy.concatenate(found)).items()}
