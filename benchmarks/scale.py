"""How the threshold and the masked step grow: `python benchmarks/scale.py size|ranks|model|step`.

size   10 M to --largest weights in one process, made in pieces of 10 M whenever they are read: the weights never
       lie in memory together, the masks do. The time that making takes is measured within the run and taken off.
ranks  1, 2 and 4 gloo ranks: 85.5 M weights in all, and 21.4 M a rank.
model  What is predicted for --parameters at 64 and 1,024 ranks. Assumes that
       - a rank's own time is --passes times one streaming read of its shard, at --bandwidth (bytes a second);
       - a collective costs --latency × log2(ranks), its bytes cross --wire (bytes a second) twice; nothing overlaps;
       - ranks hold equal shards, none straggles, and the sample's bracket holds, as it nearly always does.
       Collectives and bytes are not assumed: one process runs as rank 0 of so many on --matrices small matrices,
       each weight three times, so that ties must be shared out.
step   A step under a 70 % mask against one of the same engine without masks, ZeRO --stage on 2 gloo ranks, in turns
       from the same weights; masking.mask_gradients alone. The slower rank counts. The model is train_overhead.py's.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from threshold import SIZE, clock, measured, quartiles, slowest, spawn
from torch import Tensor
from train_overhead import make_data, make_model, random_task

from lth_scale.config.resolution import resolve
from lth_scale.distributed.pieces import Ranks
from lth_scale.pruning import masking, threshold
from lth_scale.pruning.prunable_set import prunable
from lth_scale.training import loop, networks, preparation

PIECE = 10_000_000


class Lazy(Mapping[str, Tensor]):
    """Matrices of PIECE weights, made at each read: normals, times a scale of the matrix's own."""

    def __init__(self, pieces: int):
        generator = torch.Generator().manual_seed(0)
        self.block = torch.randn(PIECE, generator=generator)
        self.scales = {
            f"matrix {i}": 0.02 + 0.04 * torch.rand((), generator=generator) for i in range(pieces)
        }
        self.seconds, self.reads = 0.0, 0

    def __getitem__(self, name: str) -> Tensor:
        started = time.perf_counter()
        piece = self.block * self.scales[name]
        self.seconds += time.perf_counter() - started
        self.reads += 1
        return piece

    def __iter__(self) -> Iterator[str]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)


def size(options: SimpleNamespace) -> None:
    """Print the cost at each size, sizes in turns."""
    pieces = [count for count in (1, 3, 10, 30, 100) if count * PIECE <= options.largest]
    [found] = spawn(1, options.threads, clock_sizes, pieces, options.rounds)
    print(
        "| weights | seconds | without making | ns a weight | passes | extra memory, of the weights |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for count, turns in found.items():
        whole, own, passes, extra = zip(*turns, strict=True)
        each = [1e9 * seconds / count / PIECE for seconds in own]
        memory = f"{max(extra) / 1e6:,.0f} MB, {max(extra) / 4 / count / PIECE:.3f}"
        cells = f"{quartiles(whole, 2)} | {quartiles(own, 2)} | {quartiles(each, 2)} | {max(passes):.0f} | {memory}"
        print(f"| {count * PIECE / 1e6:,.0f} M | {cells} |")


def clock_sizes(ranks: Ranks, pieces: list[int], rounds: int) -> dict[int, tuple]:
    """pieces → (seconds, those without making weights, passes, extra memory beyond one piece) of each round."""
    once(1)
    turns = [[once(count) for count in pieces] for _ in range(rounds)]
    return dict(zip(pieces, zip(*turns, strict=True), strict=True))


def once(pieces: int) -> tuple[float, float, float, int]:
    """One cut from dense to 10 %."""
    weights = Lazy(pieces)
    keep = {name: torch.ones(PIECE, dtype=torch.bool) for name in weights}
    _, seconds, extra, _ = measured(lambda: threshold.prune(weights, keep, 0.1, "global"))
    return seconds, seconds - weights.seconds, weights.reads / pieces, extra - 4 * PIECE


def ranks(options: SimpleNamespace) -> None:
    """Print the cost on 1, 2 and 4 ranks."""
    print("| ranks | weights a rank | seconds | collectives | bytes handed over a rank |")
    print("| --- | --- | --- | --- | --- |")
    for world, parts in ((1, 1), (2, 2), (4, 4), (1, 4), (2, 4)):
        found = spawn(world, options.threads, clock, ["ours"], options.rounds, parts, 0.0, 0.1)
        sent = max((rank["ours"][-1][2] for rank in found), key=sum)
        cells = f"{SIZE / parts / 1e6:.1f} M | {quartiles(slowest(found, 'ours'))} | {len(sent)} | {sum(sent):,}"
        print(f"| {world} | {cells} |", flush=True)


@dataclass(frozen=True)
class Alone(Ranks):
    """Rank 0 of `count`, whose others have nothing; notes the bytes that it would hand over."""

    sent: list[int] = field(default_factory=list)

    def _reduce(self, numbers: Tensor, how: Any) -> Tensor:
        self.sent.append(numbers.nbytes)
        return numbers.clone()


def model(options: SimpleNamespace) -> None:
    """Print the assumptions and what they give."""
    print(__doc__[__doc__.index("model  ") : __doc__.index("step  ")])
    print(vars(options), "\n")
    print(
        "| ranks | scope | shard, s | latency, s | wire, s | together, s | collectives | bytes handed over |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for world in (64, 1024):
        for scope in ("global", "layerwise"):
            sent = dry_run(world, options.matrices, scope)
            work = options.passes * 4 * options.parameters / world / options.bandwidth
            waits = len(sent) * options.latency * math.log2(world)
            wire = 2 * sum(sent) / options.wire
            times = f"{work:.4f} | {waits:.4f} | {wire:.4f} | {work + waits + wire:.4f}"
            print(f"| {world:,} | {scope} | {times} | {len(sent)} | {sum(sent):,} |")
    print(
        f"\nGathering all weights would hand over 4 bytes a parameter, {4 * options.parameters / 1e9:.0f} GB a rank."
    )


def dry_run(world: int, matrices: int, scope: str) -> list[int]:
    """Bytes of each collective of one cut, as rank 0 of `world` hands them over."""
    alone = Alone(0, world, world)
    weights = {f"matrix {i}": torch.randn(13_333).repeat(3) for i in range(matrices)}
    keep = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    threshold.prune(weights, keep, 0.1, scope, alone)
    return alone.sent


def step(options: SimpleNamespace) -> None:
    """Print what masking costs a step; of the ranks, the slower."""
    masked, dense, alone = torch.tensor(launch(options)).amax(0).tolist()
    ratio = [ours / theirs for ours, theirs in zip(masked, dense, strict=True)]
    share = [100 * part / whole for part, whole in zip(alone, dense, strict=True)]
    print(
        "| ZeRO | step, ms | without masks, ms | ratio | mask_gradients alone, ms | of a step, % |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    cells = f"{quartiles(masked, 1)} | {quartiles(dense, 1)} | {quartiles(ratio)} | {quartiles(alone, 2)}"
    print(f"| {options.stage} | {cells} | {quartiles(share, 2)} |")


def launch(options: SimpleNamespace, world: int = 2) -> list[list[list[float]]]:
    """What each rank's `step_rank` prints, under the variables that Accelerate's launcher would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free.getsockname()[1],
            "DS_ACCELERATOR": "cpu",
        }
    common |= {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "OMP_NUM_THREADS": 1,
        "PYTHONWARNINGS": "ignore",
    }
    common |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": options.stage}
    common |= {"ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,zero3_init_flag,mixed_precision"}
    common |= {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "false", "ACCELERATE_MIXED_PRECISION": "no"}
    command = [
        sys.executable,
        __file__,
        "step_rank",
        *(f"--{key}={getattr(options, key)}" for key in STEP),
    ]
    jobs = []
    for rank in range(world):
        env = os.environ | {
            key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()
        }
        jobs.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    return [json.loads(job.communicate()[0].splitlines()[-1]) for job in jobs]


def step_rank(options: SimpleNamespace) -> None:
    """One rank of `step`: print as JSON the milliseconds of each round: masked, without masks, mask_gradients."""
    args = resolve({"task": "sst2", "preset": "demo", "per_device_train_batch_size": options.batch})
    network = make_model()
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    threshold.prune(prunable(network), masks, 0.7, "global")
    task = random_task(network, make_data(64))
    net = networks.prepare(preparation.make_accelerator(args), task, args)  # type: ignore[arg-type]
    found: dict[str, list[float]] = {"masked": [], "dense": [], "alone": []}
    for turn in range(options.rounds + 1):
        for name in ("masked", "dense") if turn % 2 else ("dense", "masked"):
            networks.restart(net, net.initial, masks, 0, 0)
            net.masks = net.masks if name == "masked" else {}
            found[name].append(block(net, options.steps))
            if name == "masked":
                found["alone"].append(mask_alone(net))
    print(json.dumps([times[1:] for times in found.values()]))


def block(net: networks.Network, steps: int) -> float:
    """Milliseconds of a step, the mean of some after a first."""
    for n in range(steps + 1):
        if n == 1:
            dist.barrier()
            started = time.perf_counter()
        backward(net)
        loop.step_optimizer(net, 1e-5)
    return 1e3 * (time.perf_counter() - started) / steps


def backward(net: networks.Network) -> None:
    """Gradients of this rank's first batch."""
    net.engine.model.train()
    with net.accelerator.accumulate(net.engine.model):
        net.engine.backward(net.engine.model(**net.batches[0]).loss)


def mask_alone(net: networks.Network) -> float:
    """Milliseconds of masking the gradients of one step."""
    backward(net)
    started = time.perf_counter()
    masking.mask_gradients(net.targets, net.masks)
    return 1e3 * (time.perf_counter() - started)


STEP = {"rounds": 9, "steps": 3, "batch": 8, "stage": 2}
MODEL = {
    "parameters": 7e9,
    "matrices": 224,
    "passes": 6.0,
    "bandwidth": 5e9,
    "latency": 20e-6,
    "wire": 1e9,
}


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {part.__name__: part for part in (size, ranks, model, step, step_rank)}
    parser.add_argument("part", choices=parts)
    for name, default in {**STEP, **MODEL, "threads": 1, "largest": 1e9}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    parts[options.part](options)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
