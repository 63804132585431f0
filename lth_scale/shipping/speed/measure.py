"""Callables timed against each other, interleaved and on pinned cores; knows no models."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lth_scale.config.texts import first_line
from lth_scale.tracking.machine import usable_cores

Spread = tuple[float, float, float]  # median, lower and upper quartile


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each sweep: on the clock, and of CPU time over all threads of the process."""

    wall: Sequence[float]
    cpu: Sequence[float]


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    import numpy

    median, low, high = numpy.quantile(values, [0.5, 0.25, 0.75]).tolist()
    return median, low, high


def measure(
    callables: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3, seed: int = 0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time `repeats` sweeps after `warmup` more; a sweep calls each once, in an order drawn anew from `seed`.

    Returns the timings, and one line why for each that raised, which is called no more.
    """
    random, failed = Random(seed), dict[str, str]()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in callables}
    for sweep in range(-warmup, repeats):
        order = [name for name in callables if name not in failed]
        random.shuffle(order)
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                callables[name]()
            except Exception as problem:
                failed[name] = reason(problem)
                continue
            took = time.perf_counter() - wall, time.process_time() - cpu
            if sweep >= 0:
                found[name].append(took)
    return {
        name: Timing(*zip(*took, strict=True)) for name, took in found.items() if name not in failed
    }, failed


def reason(problem: Exception) -> str:
    """An error in one line."""
    return f"{type(problem).__name__}: {first_line(problem)}"


def ratio(reference: Timing, timing: Timing) -> Spread:
    """How many times as fast as the reference: the spread of the ratios within each sweep."""
    return spread([theirs / ours for theirs, ours in zip(reference.wall, timing.wall, strict=True)])


def verdict(found: Spread) -> str:
    """`faster` where both quartiles are above 1, `slower` where the median is below 1; else neither is shown."""
    median, low, _ = found
    return "slower" if median < 1 else "faster" if low > 1 else "no difference shown"


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep all threads of this process on `threads` cores, and torch to as many threads; then restore both."""
    import torch

    cores, count = usable_cores()[:threads], torch.get_num_threads()
    before = {task: os.sched_getaffinity(task) for task in _tasks()}
    for task in before:
        os.sched_setaffinity(task, cores)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        for task in _tasks():
            os.sched_setaffinity(
                task, before.get(task, before[os.getpid()])
            )  # younger ones were born with `cores`


def _tasks() -> list[int]:
    path = Path("/proc/self/task")
    return [int(each.name) for each in path.iterdir()] if path.is_dir() else []
