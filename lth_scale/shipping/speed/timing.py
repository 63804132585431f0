"""One network in every backend: built, timed in interleaved and pinned calls, and compared."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy
import torch
from torch import Tensor

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.shipping.export.formats.onnx import Forward
from lth_scale.shipping.export.source import ExportSource, longest
from lth_scale.shipping.speed.accuracy import score, select_inputs, text_inputs
from lth_scale.shipping.speed.flags import Speed
from lth_scale.shipping.speed.registry import BACKENDS, EAGER, Backend, Setup
from lth_scale.tasks.task import Batch, Task
from lth_scale.tracking.console import print_line
from lth_scale.tracking.machine import usable_cores

LENGTH = 128  # tokens of a sequence by default
Spread = tuple[float, float, float]  # median, lower and upper quartile
Row = dict[str, Any]  # of speed.json


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each sweep: wall clock, and CPU time of all threads."""

    wall: list[float]
    cpu: list[float]


def time_target(source: ExportSource, task: Task | None, args: Speed, device: str) -> list[Row]:
    """Return a cell for each number of threads and shape, with `rows` by backend."""
    names = [name for name in BACKENDS if not args.backends or name in (EAGER, *args.backends)]
    lengths = args.sequence_length or (min(LENGTH, longest(source.model, source.tokenizer)),)
    shapes = [(batch, length) for length in lengths for batch in args.batch_size]
    if task:
        examples = [select_inputs(task.eval_collate([row]), source) for row in task.train]
    else:
        examples = [text_inputs(source, *shape) for shape in shapes]
    cells, scores = list[Row](), dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            print_line(f"{source.path}: building {len(names)} backends, threads: {threads}")
            setup = Setup(source.model, examples, threads, Path(folder), device)
            with pinned(threads):
                backends, rows = build(names, setup)
                cells += [_cell(source, shape, setup, backends, rows, args) for shape in shapes]
                for name, backend in backends.items():
                    if task and name not in scores:
                        print_line(f"{source.path}: scoring {name}")
                        scores[name] = _score(source, task, backend)
    for cell in cells:
        for name, row in cell["rows"].items():
            row |= scores.get(name, {}) if "ms" in row else {}
    return cells


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
                why, status = _reason(problem), "failed"
        rows[name] = {"status": status, "why": why}
        rows[name] |= {"precision": backend.precision, "sparse": backend.sparse}
    return backends, rows


def unavailable(backend: Backend, setup: Setup) -> str:
    """Return why a backend cannot run this network here, in one line, or ""."""
    if setup.device not in backend.devices:
        return f"runs on {backend.devices[0]}; use --device {backend.devices[0]}"
    try:
        return backend.unavailable(setup)
    except BadInput as problem:
        return str(problem)


def _cell(
    source: ExportSource,
    shape: tuple[int, int],
    setup: Setup,
    backends: Mapping[str, Forward],
    built: Mapping[str, Row],
    args: Speed,
) -> Row:
    batch, length = shape
    print_line(f"{source.path}: timing {batch} × {length} tokens")
    rows = {name: {**row} for name, row in built.items()}
    inputs = text_inputs(source, batch, length)
    _time(rows, backends, {name: tensor.to(setup.device) for name, tensor in inputs.items()}, args)
    return {
        "target": str(source.path),
        "sparsity": source.sparsity,
        "pruned": source.pruned,
        "prunable": source.prunable,
        "batch_size": batch,
        "sequence_length": length,
        "threads": setup.threads,
        "device": setup.device,
        "best": _best_dense(rows),
        "rows": rows,
    }


def _time(
    rows: dict[str, Row], backends: Mapping[str, Forward], inputs: Batch, args: Speed
) -> None:
    """Add times, ratios and the difference of outputs to the rows, or why a backend failed."""
    torch.compiler.reset()  # or code compiled for earlier shapes becomes code for any shape

    def call(forward: Forward) -> None:
        forward(inputs)
        if inputs["input_ids"].is_cuda:
            torch.cuda.synchronize()

    calls = {name: partial(call, forward) for name, forward in backends.items()}
    timings, failed = measure(calls, args.repeats, args.warmup, args.seed)
    for name, why in failed.items():
        rows[name] |= {"status": "failed", "why": why}
    expected = backends[EAGER](inputs) if EAGER in timings else ()
    for name, timing in timings.items():
        wall, cpu = ([1000 * x for x in seconds] for seconds in (timing.wall, timing.cpu))
        rows[name] |= {"ms": spread(wall), "cpu_ms": spread(cpu), "samples_ms": wall}
        if expected:
            rows[name]["difference"] = largest_difference(expected, backends[name](inputs))
    best = _best_dense(rows)
    for name, timing in timings.items():
        same = best.get(rows[name]["precision"], "")
        for key, reference in {"eager": EAGER, "best": best.get("any", ""), "same": same}.items():
            if reference in timings:
                times = ratio(timings[reference], timing)
                text = "the best dense" if reference == name else verdict(times)
                rows[name] |= {f"times_{key}": times, f"verdict_{key}": text}


def _best_dense(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return the fastest dense backend: of `any` precision, and of each."""
    dense = sorted(
        (row["ms"][0], name) for name, row in rows.items() if "ms" in row and not row["sparse"]
    )
    return {key: name for _, name in reversed(dense) for key in ("any", rows[name]["precision"])}


def largest_difference(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the largest difference in any output, relative to its largest magnitude."""
    pairs = [(a.float().cpu(), b.float().cpu()) for a, b in zip(reference, outputs, strict=True)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def measure(
    callables: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3, seed: int = 0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time `repeats` sweeps after `warmup` sweeps; a sweep calls each once, in a random order.

    Returns the timings, and for each callable that raised the error in one line; it is not called
    again.
    """
    random, failed = Random(seed), dict[str, str]()
    timings = {name: Timing([], []) for name in callables}
    for sweep in range(-warmup, repeats):
        order = [*timings]
        random.shuffle(order)
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                callables[name]()
            except Exception as problem:
                failed[name] = _reason(problem)
                del timings[name]
                continue
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if sweep >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings, failed


def _score(source: ExportSource, task: Task, backend: Forward) -> Row:
    try:
        return {"accuracy": score(source, task, backend)}
    except Exception as problem:
        return {"accuracy_failed": _reason(problem)}


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


def spread(values: Sequence[float]) -> Spread:
    """Return median, lower and upper quartile."""
    median, low, high = numpy.quantile(values, [0.5, 0.25, 0.75]).tolist()
    return median, low, high


def ratio(reference: Timing, timing: Timing) -> Spread:
    """Return how many times as fast as the reference, by the ratios of each sweep."""
    return spread([theirs / ours for theirs, ours in zip(reference.wall, timing.wall, strict=True)])


def verdict(times: Spread) -> str:
    """Return `faster` if both quartiles are above 1, `slower` if the median is below 1."""
    median, low, _ = times
    return "slower" if median < 1 else "faster" if low > 1 else "no difference shown"


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep all threads of this process on `threads` cores, and torch to as many threads."""
    cores, count = usable_cores()[:threads], torch.get_num_threads()
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()}
    for thread in before:
        os.sched_setaffinity(thread, cores)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        for thread in _threads():  # threads started meanwhile inherited `cores`
            os.sched_setaffinity(thread, before.get(thread, before[os.getpid()]))


def _threads() -> list[int]:
    path = Path("/proc/self/task")
    return [int(entry.name) for entry in path.iterdir()] if path.is_dir() else []
