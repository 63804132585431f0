"""One cut through the 85.5 M prunable weights of BERT-base, beside other ways: `python
benchmarks/threshold.py`.

With --world each gloo rank holds an even part of each matrix, as under ZeRO-3; kthvalue then
gathers all weights on every rank. With --before that much is pruned already, and 0 as training
leaves it. All but global_unstructured write into masks that are there. Variants take turns, ratios
are taken round by round, `check` compares the masks. Memory is the peak of the resident set over
what it was before a call, each variant in a process of its own; bytes are those of the tensors that
a rank hands to collectives.
"""

import argparse
import ctypes
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import prune

from lth_scale.distributed.pieces import Ranks
from lth_scale.pruning import threshold

SHAPES = [*([(768, 768)] * 4 + [(3072, 768), (768, 3072)]) * 12, (768, 768)]
SIZE = sum(rows * columns for rows, columns in SHAPES)


@dataclass
class Data:
    """This rank's weights, views of `flat`; masks to write and as they were; `count` are pruned in
    the end.
    """

    flat: Tensor
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    start: list[Tensor]
    sparsity: float
    count: int
    ranks: Ranks
    modules: Sequence[nn.Module] = ()


def make(ranks: Ranks, parts: int, before: float, after: float) -> Data:
    """One of `parts` equal parts of each matrix, normal, each matrix with a scale of its own."""
    sizes = [rows * columns // parts for rows, columns in SHAPES]
    flat = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(ranks.index)).mul_(0.04)
    weights = {f"matrix {i}": weight for i, weight in enumerate(flat.split(sizes))}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for i, weight in enumerate(weights.values()):
        weight.mul_(0.5 + i * 29 % 73 / 73)
    if before:
        threshold.prune(weights, masks, before, "global", ranks)
        for name, mask in masks.items():
            weights[name].mul_(mask)
    count = round(after * len(flat) * ranks.shards)
    return Data(
        flat, weights, masks, [mask.clone() for mask in masks.values()], after, count, ranks
    )


def ours(data: Data) -> Iterable[Tensor]:
    """What is measured here."""
    threshold.prune(data.weights, data.masks, data.sparsity, "global", data.ranks)
    return data.masks.values()


def global_unstructured(data: Data) -> Iterable[Tensor]:
    """torch.nn.utils.prune, on modules that have the masks before."""
    new = data.count - sum(mask.numel() - int(mask.sum()) for mask in data.start)
    prune.global_unstructured(
        [(module, "weight") for module in data.modules], prune.L1Unstructured, amount=new
    )
    return [module.weight_mask for module in data.modules]


def as_module(weight: Tensor, mask: Tensor) -> nn.Module:
    """A layer for torch.nn.utils.prune."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(weight))
    return module if mask.all() else prune.custom_from_mask(module, "weight", mask)


def kthvalue(data: Data) -> Iterable[Tensor]:
    """All weights, those of the other ranks as well, in one tensor, and torch's k-th value."""
    flat = torch.cat([*data.weights.values()])
    if data.ranks.shards > 1:
        part, flat = flat, torch.empty(len(flat) * data.ranks.shards)
        dist.all_gather([*flat.chunk(data.ranks.shards)], part)
        del part
    cut = flat.abs_().kthvalue(data.count).values
    return [torch.gt(data.weights[name].abs(), cut, out=mask) for name, mask in data.masks.items()]


def partition(data: Data) -> Iterable[Tensor]:
    """The same with numpy."""
    flat = numpy.concatenate([weight.numpy() for weight in data.weights.values()])
    numpy.abs(flat, out=flat).partition(data.count - 1)
    for name, mask in data.masks.items():
        numpy.greater(numpy.abs(data.weights[name].numpy()), flat[data.count - 1], out=mask.numpy())
    return data.masks.values()


VARIANTS: dict[str, Callable[[Data], Any]] = {
    **{variant.__name__: variant for variant in (ours, global_unstructured, kthvalue, partition)},
    "read": lambda data: sum(weight.abs().sum() for weight in data.weights.values()),
    "read_flat": lambda data: data.flat.abs().sum(),
}


def check(data: Data, masks: Iterable[Tensor]) -> None:
    """The right number is pruned, the smallest first; more only where weights at the cut are equal."""
    mask, bits = (
        torch.cat([mask.view(-1).bool() for mask in masks]),
        data.flat.abs().view(torch.int32),
    )
    cut = -data.ranks.min(-int(bits[~mask].max()))
    numbers = torch.tensor([int((~mask).sum()), int((bits == cut).sum())])
    pruned, ties = data.ranks.sum(numbers).tolist()
    assert int(bits[mask].min()) >= cut and 0 <= pruned - data.count < ties, (
        pruned,
        data.count,
        ties,
    )


def clock(ranks: Ranks, names: list[str], rounds: int, *shape: Any) -> dict[str, list]:
    """variant → what `once` gives, of each round and one before them. shape: as `make` takes it."""
    for name in names:
        once(make(ranks, 64, *shape[1:]), name)  # loads what is loaded late
    data, found = make(ranks, *shape), {name: [] for name in names}
    for turn in range(rounds + 1):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            found[name].append(once(data, name, checked=turn == 0))
    return found


def once(data: Data, name: str, checked: bool = False) -> tuple[float, int, list[int]]:
    """What `measured` gives of one run from the masks before."""
    for mask, before in zip(data.masks.values(), data.start, strict=True):
        mask.copy_(before)
    data.modules = (
        [*map(as_module, data.weights.values(), data.start)]
        if name == "global_unstructured"
        else ()
    )
    data.ranks.min(0)  # a barrier
    masks, *found = measured(lambda: VARIANTS[name](data))
    if checked and not name.startswith("read"):
        check(data, masks)
    return tuple(found)


def measured(call: Callable[[], Any]) -> tuple[Any, float, int, list[int]]:
    """What a call returns, its seconds, the bytes by which the resident set grows at most (Linux),
    and its traffic.
    """
    sent, reduce, gather = [], dist.all_reduce, dist.all_gather
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with (
        patch.object(
            dist, "all_reduce", lambda tensor, op: sent.append(tensor.nbytes) or reduce(tensor, op)
        ),
        patch.object(
            dist,
            "all_gather",
            lambda parts, tensor: sent.append(tensor.nbytes) or gather(parts, tensor),
        ),
    ):
        started = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - started
    return result, seconds, resident("VmHWM") - before, sent


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def spawn(world: int, threads: int, function: Callable, *args: Any) -> list[Any]:
    """function(Ranks, *args) of each of `world` new processes, joined by gloo where there are
    several.
    """
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool,
    ):
        common = (f"file://{folder}/store", threads, function, *args)
        jobs = [pool.submit(join, Ranks(i, world, world), *common) for i in range(world)]
        return [job.result() for job in jobs]


def join(ranks: Ranks, address: str, threads: int, function: Callable, *args: Any) -> Any:
    """One process of `spawn`."""
    torch.set_num_threads(threads)
    if ranks.shards > 1:
        dist.init_process_group(
            "gloo", init_method=address, rank=ranks.index, world_size=ranks.shards
        )
    return function(ranks, *args)


def slowest(found: list[dict[str, list]], name: str) -> list[float]:
    """Seconds of each round on the rank that took longest."""
    return [
        max(rank[0] for rank in turn)
        for turn in zip(*(rank[name][1:] for rank in found), strict=True)
    ]


def quartiles(values: list[float], digits: int = 3) -> str:
    """Median [lower, upper quartile]."""
    low, middle, high = numpy.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def main() -> None:
    """Measure and print a table; of ranks, the most that any took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("rounds", 5),
        ("threads", 1),
        ("world", 1),
        ("before", 0.0),
        ("after", 0.1),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    world, threads, shape = (
        options.world,
        options.threads,
        (options.world, options.before, options.after),
    )
    names, shard = [*VARIANTS] if world == 1 else ["ours", "kthvalue"], 4 * SIZE / world
    print(
        f"{options}, torch {torch.__version__}, {platform.machine()}, {shard / 1e6:.0f} MB of weights a rank\n"
    )
    print(
        "| variant | seconds | times ours | extra memory, MB | of the weights | bytes handed over | collectives |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = spawn(world, threads, clock, names, options.rounds, *shape)
    for name in names:
        ratio = [
            theirs / our
            for theirs, our in zip(slowest(found, name), slowest(found, "ours"), strict=True)
        ]
        alone = [rank[name][0] for rank in spawn(world, threads, clock, [name], 0, *shape)]
        extra, sent = max(rank[1] for rank in alone), max((rank[2] for rank in alone), key=sum)
        cells = f"{quartiles(slowest(found, name))} | {quartiles(ratio, 2)} | {extra / 1e6:,.1f} | {extra / shard:.2f}"
        print(f"| {name} | {cells} | {sum(sent):,} | {len(sent)} |", flush=True)


if __name__ == "__main__":
    main()
