"""One rank of tests/test_sharding.py: runs every case of a world size on real engines and leaves what it found on disk.

RANK=… WORLD_SIZE=… python tests/sharded.py DIRECTORY CASE…       (a case is KIND-PRECISION)
"""

import json
import os
import sys
from pathlib import Path

import torch

STEPS = 30
VARIABLES = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    **{
        f"zero{stage}": {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage[0],
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu" if "offload" in stage else "none",
            "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu" if "offload" in stage else "none",
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,zero3_init_flag,mixed_precision",
        }
        for stage in ("1", "2", "3", "3offload")
    },
    "ddp": {"ACCELERATE_USE_CPU": "true"},
}
OPTIMIZERS = {
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3, "gradient_accumulation_steps": 1},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05, "gradient_accumulation_steps": 2},
}


def arguments(directory: Path, optimizer: str, world: int, precision: str = "no"):
    """The same 12 examples a step for every world size."""
    from lth_scale.arguments import resolve

    options = OPTIMIZERS[optimizer]
    return resolve({
        "task": "sst2", "model_name_or_path": str(directory / "model"), "dataset_path": str(directory / "data"),
        "output_dir": str(directory / "out"), "max_steps": STEPS, "max_seq_length": 32, "weight_decay": 0.1,
        "max_grad_norm": 0.05, "report_to": "none", "logging_steps": 1, "target_sparsity": 0.3,
        "per_device_train_batch_size": 12 // world // options["gradient_accumulation_steps"],
        "bf16": precision == "bf16", "fp16": precision == "fp16", **options,
    })  # fmt: skip


def half_mask(shapes: dict) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items()}


def tied(weights: dict) -> dict:
    """θ with few distinct magnitudes: ties, zeros of both signs and denormals."""
    coarse = {name: (weight * 40).round() / 40 for name, weight in weights.items()}
    for weight in coarse.values():
        weight.view(-1)[::7] *= -1
        weight.view(-1)[3::11] *= 1e-40
    return coarse


def prepared(args):
    """A net on fresh Accelerate state, with θ₀."""
    from accelerate.state import AcceleratorState

    from lth_scale import tasks, training

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = training.make_accelerator(args)
    net = training.prepare(accelerator, tasks.load(args), args)
    return net, net.initial


def masks_at(net, weights: dict, sparsities: list[float]) -> list[dict]:
    """The nested masks that the threshold finds for `weights`, whole, on the main process."""
    from lth_scale import threshold, training

    everything = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    training.restart(net, weights, everything, 0, 1)
    found = []
    for sparsity in sparsities:
        masters = {name: piece.master() for name, piece in net.targets.items()}
        threshold.prune(masters, net.masks, sparsity, "global", net.shards.ranks)
        found.append(net.shards.gather(net.masks, net.targets))
    return found


def train(net, weights: dict, masks: dict) -> dict:
    """30 masked steps from `weights`: what they led to, and what was seen on the way."""
    from lth_scale import masking, training

    norms, held, step = [], [], training.step_optimizer

    def watched(net, rate):
        norms.append(step(net, rate))
        held.append(masking.is_held(net.targets, net.masks))
        return norms[-1]

    training.step_optimizer = watched
    training.restart(net, weights, masks, 0, 1)
    training.train(net, STEPS, lambda _: net.args.learning_rate, lambda *_: None)
    training.step_optimizer = step
    moments = sorted({key for piece in net.targets.values() for key in piece.moments()})
    scores = training.evaluate(net)  # leaves FSDP2's root gathered: the next restart must not be fooled
    return {
        "weights": net.shards.whole_weights(),
        "held": all(held) and len(held) == STEPS,
        "norms": [float(norm) for norm in norms],
        "moments": moments,
        "scores": scores,
    }


def run(case: str, directory: Path, world: int) -> dict:
    kind, precision = case.split("-")
    os.environ |= VARIABLES[kind]
    found: dict = {}
    for optimizer in OPTIMIZERS:
        args = arguments(directory, optimizer, world, precision)
        net, theta = prepared(args)
        masks = half_mask({name: piece.shape for name, piece in net.targets.items()})
        first = train(net, theta, masks)
        again = train(net, theta, masks)
        first["repeats"] = all(torch.equal(first["weights"][name], w) for name, w in again["weights"].items())
        found[optimizer] = first
    found["masks"] = masks_at(net, theta, [0.1, 0.5, 0.9])
    found["tied"] = masks_at(net, tied(theta), [0.0, 0.1, 0.3, 0.5, 1.0])
    found["sizes"] = [piece.size for piece in net.shards.pieces.values()]
    for name in VARIABLES[kind]:
        del os.environ[name]
    return found


def main() -> None:
    directory, cases = Path(sys.argv[1]), sys.argv[2:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for case in cases:
        found = run(case, directory, world)
        torch.save(found, directory / f"{case}-{world}-{rank}.pt")
        print(json.dumps({"case": case, "norms": found["adamw"]["norms"][:2]}), flush=True)


if __name__ == "__main__":
    try:
        main()
        torch.distributed.barrier()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)  # at once, so that the other ranks see it
    os._exit(0)
