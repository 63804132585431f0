"""Times of callables that are interleaved and pinned to cores, and their ratios."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lth_scale.config.texts import first_line
from lth_scale.tracking.machine import usable_cores

Spread = tuple[float, float, float]  # median, lower and upper quartile
Row = dict[str, Any]  # of speed.json


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each sweep: wall clock, and CPU time of all threads."""

    wall: Sequence[float]
    cpu: Sequence[float]


def spread(values: Sequence[float]) -> Spread:
    """Return median, lower and upper quartile."""
    import numpy

    median, low, high = numpy.quantile(values, [0.5, 0.25, 0.75]).tolist()
    return median, low, high


def measure(
    callables: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3, seed: int = 0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time `repeats` sweeps after `warmup` sweeps; a sweep calls each once, in a random order.

    Returns the timings, and for each callable that raised the error in one line; it is not called
    again.
    """
    random, failed = Random(seed), dict[str, str]()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in callables}
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
            elapsed = time.perf_counter() - wall, time.process_time() - cpu
            if sweep >= 0:
                seconds[name].append(elapsed)
    timings = {
        name: Timing(*zip(*pairs, strict=True))
        for name, pairs in seconds.items()
        if name not in failed
    }
    return timings, failed


def reason(problem: Exception) -> str:
    """Return an error in one line."""
    return f"{type(problem).__name__}: {first_line(problem)}"


def ratio(reference: Timing, timing: Timing) -> Spread:
    """Return how many times as fast as the reference: the spread of the ratios in each sweep."""
    return spread([theirs / ours for theirs, ours in zip(reference.wall, timing.wall, strict=True)])


def verdict(times: Spread) -> str:
    """Return `faster` if both quartiles are above 1, `slower` if the median is below 1."""
    median, low, _ = times
    return "slower" if median < 1 else "faster" if low > 1 else "no difference shown"


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep all threads of this process on `threads` cores and torch to as many threads, inside."""
    import torch

    cores, count = usable_cores()[:threads], torch.get_num_threads()
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()}
    for thread in before:
        os.sched_setaffinity(thread, cores)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        for thread in _threads():  # threads started inside inherited `cores`
            os.sched_setaffinity(thread, before.get(thread, before[os.getpid()]))


def _threads() -> list[int]:
    path = Path("/proc/self/task")
    return [int(entry.name) for entry in path.iterdir()] if path.is_dir() else []
