"""One network in every backend: built, timed and compared."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lth_scale.config.errors import BadInput
from lth_scale.shipping.export.inputs import longest
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.export.source import ExportSource
from lth_scale.shipping.speed.accuracy import calibration_inputs, score
from lth_scale.shipping.speed.inputs import text_inputs
from lth_scale.shipping.speed.measure import (
    Row,
    Timing,
    measure,
    pinned,
    ratio,
    reason,
    spread,
    verdict,
)
from lth_scale.shipping.speed.registry import BACKENDS, EAGER, Backend, Setup
from lth_scale.tasks.task import Batch, Task
from lth_scale.tracking.console import print_line

LENGTH = 128  # tokens of a sequence by default


class Plan(Protocol):
    """What is timed: the flags of `lth_scale.speed` of these names."""

    @property
    def backends(self) -> Sequence[str] | None: ...
    @property
    def batch_size(self) -> Sequence[int]: ...
    @property
    def sequence_length(self) -> Sequence[int] | None: ...
    @property
    def threads(self) -> Sequence[int]: ...
    @property
    def repeats(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def seed(self) -> int: ...


def time_target(source: ExportSource, task: Task | None, plan: Plan, device: str) -> list[Row]:
    """Return a cell for each number of threads and shape, with `rows` by backend."""
    names = [name for name in BACKENDS if not plan.backends or name in (EAGER, *plan.backends)]
    lengths = plan.sequence_length or (min(LENGTH, longest(source.model, source.tokenizer)),)
    shapes = [(batch, length) for length in lengths for batch in plan.batch_size]
    if task:
        examples = calibration_inputs(source, task)
    else:
        examples = [text_inputs(source, *shape) for shape in shapes]
    cells, scores = list[Row](), dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        for threads in plan.threads:
            print_line(f"{source.path}: building {len(names)} backends, threads: {threads}")
            setup = Setup(source.model, examples, threads, Path(folder), device)
            with pinned(threads):
                backends, rows = build(names, setup)
                for shape in shapes:
                    cells.append(_cell(source, backends, rows, shape, setup, plan))
                unscored = {name: run for name, run in backends.items() if name not in scores}
                scores |= score(source, task, unscored)
    for cell in cells:
        for name, row in cell["rows"].items():
            row |= scores.get(name, {}) if "ms" in row else {}
    return cells


def _cell(
    source: ExportSource,
    backends: Mapping[str, Forward],
    rows: Mapping[str, Row],
    shape: tuple[int, int],
    setup: Setup,
    plan: Plan,
) -> Row:
    batch, length = shape
    print_line(f"{source.path}: timing {batch} × {length} tokens")
    timed = time_cell(backends, text_inputs(source, batch, length), plan, setup.device)
    rows = {name: {**row, **timed.get(name, {})} for name, row in rows.items()}
    return {
        "target": str(source.path),
        "sparsity": source.sparsity,
        "pruned": source.pruned,
        "prunable": source.prunable,
        "batch_size": batch,
        "sequence_length": length,
        "threads": setup.threads,
        "device": setup.device,
        "best": best_dense(rows),
        "rows": rows,
    }


def build(names: Sequence[str], setup: Setup) -> tuple[dict[str, Forward], dict[str, Row]]:
    """Build the backends that run here; also return the status and reason of all."""
    backends, rows = dict[str, Forward](), dict[str, Row]()
    for name in names:
        backend = BACKENDS[name]
        why, status = unavailable(backend, setup), "skipped"
        if not why:
            try:
                backends[name], status = backend.build(setup), "timed"
            except Exception as problem:  # backends raise every kind, and the others go on
                why, status = reason(problem), "failed"
        facts = {"precision": backend.precision, "sparse": backend.sparse}
        rows[name] = {"status": status, "why": why, **facts}
    return backends, rows


def unavailable(backend: Backend, setup: Setup) -> str:
    """Return why a backend cannot run this network here, in one line, or ""."""
    if setup.device not in backend.devices:
        return f"runs on {backend.devices[0]}; use --device {backend.devices[0]}"
    try:
        return backend.unavailable(setup)
    except BadInput as problem:
        return str(problem)


def time_cell(
    backends: Mapping[str, Forward], inputs: Batch, plan: Plan, device: str
) -> dict[str, Row]:
    """Return by backend times, ratios and the difference of outputs, or `failed` and why."""
    torch.compiler.reset()  # or code compiled for earlier shapes becomes code for any shape
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}

    def call(forward: Forward) -> None:
        forward(inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    calls = {name: partial(call, forward) for name, forward in backends.items()}
    timings, failed = measure(calls, plan.repeats, plan.warmup, plan.seed)
    rows: dict[str, Row] = {name: {"status": "failed", "why": why} for name, why in failed.items()}
    reference = backends[EAGER](inputs) if EAGER in timings else ()
    for name, timing in timings.items():
        wall, cpu = ([1000 * x for x in seconds] for seconds in (timing.wall, timing.cpu))
        rows[name] = {"ms": spread(wall), "cpu_ms": spread(cpu), "samples_ms": wall}
        if reference:
            rows[name]["difference"] = largest_difference(reference, backends[name](inputs))
    return compare(rows, timings)


def compare(rows: dict[str, Row], timings: Mapping[str, Timing]) -> dict[str, Row]:
    """Add ratios and verdicts: × eager, × the best dense, × the best dense of its precision."""
    best = best_dense({name: {**vars(BACKENDS[name]), **rows[name]} for name in timings})
    for name, timing in timings.items():
        references = {
            "eager": EAGER,
            "best": best.get("any", ""),
            "same": best.get(BACKENDS[name].precision, ""),
        }
        for key, reference in references.items():
            if reference in timings:
                times = ratio(timings[reference], timing)
                text = "the best dense" if reference == name else verdict(times)
                rows[name] |= {f"times_{key}": times, f"verdict_{key}": text}
    return rows


def best_dense(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return the fastest dense backend: of `any` precision, and of each."""
    dense = sorted(
        (row["ms"][0], name) for name, row in rows.items() if "ms" in row and not row["sparse"]
    )
    return {key: name for _, name in reversed(dense) for key in ("any", rows[name]["precision"])}


def largest_difference(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the largest difference in any output, relative to its largest magnitude."""
    pairs = [(a.float().cpu(), b.float().cpu()) for a, b in zip(reference, outputs, strict=True)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
