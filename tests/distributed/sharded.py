"""One rank of test_engines.py: it runs every case of a world size and writes the results."""

import ctypes
import gc
import multiprocessing
import os
import sys
import threading
import traceback
from pathlib import Path

import torch

STEPS = 30
SAVED, CHECKED = 7, 12  # within the second and the third epoch
VARIABLES = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # as `accelerate config` writes it
    },
    **{
        f"zero{stage}": {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage[0],
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"
            if "offload" in stage
            else "none",
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
    "sgd": {
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.05,
        "gradient_accumulation_steps": 2,
    },
}


# Kinds of the same code share the optimizers; the offload has AdamW, which counts its steps.
SHARED = {
    "zero1-bf16": "adamw",
    "zero2-bf16": "sgd",
    "zero3-bf16": "sgd",
    "zero3offload-bf16": "adamw",
}


def trains(case: str, world: int) -> tuple[str, ...]:
    """The optimizers of a case: both, in fp32 over the world sizes, or over kinds of one code."""
    if case.endswith("-no"):
        return ("sgd",) if world == 2 else ("adamw",)
    return (SHARED[case],) if case in SHARED else ("adamw", "sgd")


def arguments(directory: Path, optimizer: str, world: int, precision: str = "no"):
    """Flags with 12 examples a step at every world size."""
    from lth_scale.config.resolution import resolve

    options = OPTIMIZERS[optimizer]
    return resolve(
        {
            "task": "sst2",
            "model_name_or_path": str(directory / "model"),
            "dataset_path": str(directory / "data"),
            "output_dir": str(directory / "out"),
            "max_steps": STEPS,
            "max_seq_length": 32,
            "weight_decay": 0.1,
            "max_grad_norm": 0.05,
            "report_to": "none",
            "logging_steps": 1,
            "target_sparsity": 0.3,
            "per_device_train_batch_size": 12 // world // options["gradient_accumulation_steps"],
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",
            **options,
        }
    )


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
    """A network on fresh Accelerate state, and θ₀."""
    from accelerate.state import AcceleratorState

    from lth_scale.tasks import registry
    from lth_scale.training import networks, preparation

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = preparation.make_accelerator(args)
    net = networks.prepare(accelerator, registry.load_task(args), args)
    return net, net.initial


def masks_at(net, weights: dict, sparsities: list[float]) -> list[dict]:
    """The nested masks of `weights` at rising sparsities, whole, on the main process."""
    from lth_scale.pruning import threshold
    from lth_scale.training import networks

    everything = {
        name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()
    }
    networks.restart(net, weights, everything, 0, 1)
    masks = []
    for sparsity in sparsities:
        masters = {name: piece.master() for name, piece in net.targets.items()}
        threshold.prune(masters, net.masks, sparsity, "global", net.engine.ranks)
        masks.append(net.engine.gather(net.masks, net.targets))
    return masks


def pattern_masks(net, weights: dict) -> dict:
    """The masks under patterns at 30 % and then 50 %, whole, on the main process."""
    from lth_scale.pruning.patterns import Orientation, PruningStep
    from lth_scale.pruning.registries import parse_pattern
    from lth_scale.training import networks

    engine, targets, masks = net.engine, net.targets, {}
    layout = Orientation(
        gather=lambda name, part: engine.all_gather(part, targets[name]),
        scatter=lambda name, whole: targets[name].cut(whole),
    )
    for pattern in ("2:4", "block:4x1"):
        everything = {
            name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in targets.items()
        }
        networks.restart(net, weights, everything, 0, 1)
        masters = {name: piece.master() for name, piece in targets.items()}
        for sparsity in (0.3, 0.5):
            step = PruningStep(masters, net.masks, sparsity, "global", engine.ranks, layout)
            parse_pattern(pattern).prune(step)
            masks[pattern, sparsity] = engine.gather(net.masks, targets)
    return masks


def go(net, until: int) -> dict:
    """The whole weights after training to a step."""
    from lth_scale.training import loop

    loop.train(net, until, lambda _: net.args.learning_rate, lambda *_: None)
    return net.engine.full_weights()


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def train(net, theta: dict, masks: dict, home: Path) -> dict:
    """Train 30 masked steps from θ, twice; return the weights, norms, and whether they repeat."""
    from lth_scale.pruning import masking
    from lth_scale.training import checkpoints, loop, networks

    norms, held, step = [], [], loop.step_optimizer

    def watched(net, rate):
        norms.append(step(net, rate))
        held.append(masking.is_held(net.targets, net.masks))
        return norms[-1]

    loop.step_optimizer = watched
    networks.restart(net, theta, masks, 0, 1)
    first = go(net, SAVED)
    checkpoints.save(net, home, {}, 0.0, 1)
    later = go(net, CHECKED)
    weights = go(net, STEPS)
    loop.step_optimizer = step
    moments = sorted({key for piece in net.targets.values() for key in piece.moments()})
    loop.evaluate(net)  # leaves FSDP2's root gathered, which the restart must undo
    networks.restart(net, theta, masks, 0, 1)
    repeats = same(first, go(net, SAVED))
    networks.restart(net, theta, masks, 0, 1)
    assert checkpoints.resume(net, home) is not None and net.step == SAVED
    return {
        "weights": weights,
        "held": all(held) and len(held) == STEPS,
        "norms": [float(norm) for norm in norms],
        "moments": moments,
        "repeats": repeats,
        "resumes": same(later, go(net, CHECKED)),
    }


def train_cases(kind: str, precision: str, directory: Path, world: int) -> dict:
    """The training with each optimizer, and the masks of θ₀ and of a θ full of ties."""
    results: dict = {}
    for optimizer in trains(f"{kind}-{precision}", world):
        net, theta = prepared(arguments(directory, optimizer, world, precision))
        if precision == "fp16":
            results["skipped"] = skip_a_step(net, theta)
        masks = half_mask({name: piece.shape for name, piece in net.targets.items()})
        home = directory / f"checkpoints-{kind}-{precision}-{world}-{optimizer}"
        results[optimizer] = train(net, theta, masks, home)
    results["base"] = net.base_sha256
    results["masks"] = masks_at(net, theta, [0.1, 0.5, 0.9])
    results["tied"] = masks_at(net, tied(theta), [0.0, 0.1, 0.3, 0.5, 1.0])
    results["patterns"] = pattern_masks(net, theta)
    results["broken"] = break_one_weight(net)
    results["pieces"] = {
        name: (p.offset, p.size, p.shape.numel()) for name, p in net.engine.pieces.items()
    }
    return results


def skip_a_step(net, theta: dict) -> dict:
    """Overflow a step, then restart, then overflow at the minimum loss scale."""
    from lth_scale.config.errors import Diverged
    from lth_scale.pruning import masking
    from lth_scale.training import loop, networks

    scaler = net.engine.optimizer.optimizer.loss_scaler
    masks = half_mask({name: piece.shape for name, piece in net.targets.items()})
    networks.restart(net, theta, masks, 0, 1)
    scales, before = [scaler.cur_scale], net.engine.full_weights()
    scaler.cur_scale = 2.0**40
    loop.train(net, 1, lambda _: 1.0, lambda *_: None)
    scales.append(scaler.cur_scale)
    after, held = net.engine.full_weights(), masking.is_held(net.targets, net.masks)
    networks.restart(net, theta, masks, 0, 1)
    first, least = scaler.cur_scale, scaler.min_scale
    scaler.cur_scale = scaler.min_scale = 2.0**40
    try:
        loop.train(net, 9, lambda _: 1.0, lambda *_: None)
        error = ""
    except Diverged as problem:
        error = str(problem)
    scaler.min_scale = least
    return {"scales": [*scales, first], "same": same(before, after), "held": held, "error": error}


def break_one_weight(net) -> tuple[str, str]:
    """The error on this rank if the last rank with a piece has a NaN, and the expected one."""
    from lth_scale.pruning import threshold

    ranks = net.engine.ranks
    name, piece = [*net.targets.items()][2]
    holder = -ranks.min(-ranks.index if piece.size else 0)
    if ranks.index == holder:
        piece.master()[-1] = float("nan")
    masters = {name: piece.master() for name, piece in net.targets.items()}
    try:
        threshold.prune(masters, net.masks, 1.0, "global", ranks)
    except ValueError as problem:
        return str(problem), f"{name}: holds NaN or Inf on rank {holder}"
    return "", "an error"


def search_rounds(directory: Path, kind: str, first: int, last: int) -> dict:
    """Run rounds `first` to `last` of a search, which another world size may have begun."""
    from accelerate.state import AcceleratorState

    from lth_scale.config.resolution import resolve
    from lth_scale.imp import imp
    from lth_scale.tracking.run_directory import RunDirectory
    from lth_scale.training.search import Search

    AcceleratorState._reset_state(reset_partial_state=True)
    out = directory / ("begun" if first == 0 else f"ended-{kind}")
    flags = arguments(directory, "adamw", 1).as_dict() | {
        "output_dir": str(out),
        "max_steps": 3,
        "rewind_step": "1",
    }
    args = resolve({name: value for name, value in flags.items() if value is not None})
    search, done = Search.open(args, RunDirectory.open(args)), Search.is_complete
    trained = [k for k in search.rounds if not done(search, k)]
    Search.is_complete = lambda self, k, control="none": k > last or done(self, k, control)
    imp(search)
    Search.is_complete = done
    return {"trained": trained}


def references(directory: Path, kind: str, world: int) -> dict:
    """Their rows in controls.json after a search of one round, and the sizes of their masks."""
    import dataclasses

    from accelerate.state import AcceleratorState

    from lth_scale import Ticket, imp
    from lth_scale.config import files

    rows: dict = {}
    for control in ("dense_long", "dense_restarts"):
        AcceleratorState._reset_state(reset_partial_state=True)
        out = directory / f"{control}-{kind}-{world}"
        args = arguments(directory, "adamw", world)
        flags = {"target_sparsity": 0.1, "max_steps": 3, "control": control}
        imp.run(dataclasses.replace(args, output_dir=str(out), **flags))
        torch.distributed.barrier()  # the main process has written the files
        (row,) = files.read_json(out / "controls.json")
        ticket = Ticket.load(out / f"controls/{control}/01/ticket.safetensors")
        rows[control] = row | {"kept": sum(int(mask.sum()) for mask in ticket.masks.values())}
    return rows


def twenty_rounds(directory: Path, world: int) -> dict:
    """The resident memory, in bytes, after each of 20 rounds of a 7 MB model."""
    import dataclasses

    from lth_scale.pruning import threshold
    from lth_scale.training import loop, networks

    args = dataclasses.replace(
        arguments(directory, "adamw", world), model_name_or_path=str(directory / "big"), max_steps=1
    )
    net, theta = prepared(args)
    masks = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    memory = []
    gc.collect()
    gc.freeze()  # do not collect imports again each round
    for k in range(20):
        networks.restart(net, theta, masks, 0, 1)
        loop.train(net, 1, lambda _: 1e-4, lambda *_: None)
        loop.evaluate(net)
        masters = {name: piece.master() for name, piece in net.targets.items()}
        threshold.prune(masters, net.masks, k / 20, "global", net.engine.ranks)
        net.engine.full_weights()
        net.engine.gather(net.masks, net.targets)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # return free memory to the system
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return {"memory": memory, "model": 4 * sum(weight.numel() for weight in theta.values())}


def evaluated_examples(directory: Path, world: int) -> dict:
    """What an evaluation of θ₀ keeps of each example, on the main process, by task."""
    import dataclasses

    from lth_scale.training import loop, networks

    kept: dict = {}
    for task, data in (("sst2", "data"), ("squad", "questions")):
        args = dataclasses.replace(
            arguments(directory, "adamw", world),
            task=task,
            dataset_path=str(directory / data),
            per_device_eval_batch_size=3,
            doc_stride=8,
        )
        net, theta = prepared(args)
        everything = {
            name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()
        }
        networks.restart(net, theta, everything, 0, 1)
        evaluation = loop.evaluate(net)
        examples = {name: torch.tensor(array) for name, array in evaluation.examples.items()}
        kept[task] = {"scores": dict(evaluation.scores), "examples": examples}
    return kept


def threshold_cases(rank: int, world: int) -> dict:
    """Masks of matrices cut anywhere, compared with a stable sort; and the traffic."""
    from hypothesis import given, settings
    from test_threshold import dense_reference, ones, problems

    from lth_scale.distributed.pieces import Ranks
    from lth_scale.pruning import threshold

    seen = []

    # derandomized: the same examples on every rank
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(problem=problems(world))
    def check(problem) -> None:
        weights, first, second, cuts = problem
        keep = dense_reference(weights, ones(weights), first)
        slices = {name: slice(cut[rank], cut[rank + 1]) for name, cut in cuts.items()}
        masks = {name: keep[name].view(-1)[part].clone() for name, part in slices.items()}
        pieces = {name: weights[name].view(-1)[part] for name, part in slices.items()}
        threshold.smallest(pieces, masks, second, Ranks(rank, world, world))
        parts: list[dict] = [{}] * world
        torch.distributed.all_gather_object(parts, masks)
        expected = dense_reference(weights, keep, second)
        seen.append(
            all(
                torch.equal(torch.cat([p[name] for p in parts]), expected[name].view(-1))
                for name in weights
            )
        )

    check()
    sent = [
        traffic(Ranks(rank, world, world), *shape)
        for shape in ((4, 1000), (4, 400_000), (40, 1000))
    ]
    return {"equal": seen, "traffic": sent}


def traffic(ranks, matrices: int, numel: int) -> tuple[int, int]:
    """The collectives and bytes of a threshold over `matrices` of `numel` weights a rank."""
    from lth_scale.pruning import threshold

    sent, all_reduce = [], torch.distributed.all_reduce

    def counted(tensor, *how):
        sent.append(tensor.nbytes)
        return all_reduce(tensor, *how)

    generator = torch.Generator().manual_seed(ranks.index)
    weights = {str(i): torch.randn(numel, generator=generator) for i in range(matrices)}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    torch.distributed.all_reduce = counted
    threshold.prune(weights, masks, 0.3, "global", ranks)
    torch.distributed.all_reduce = all_reduce
    return len(sent), sum(sent)


def run(case: str, directory: Path, world: int) -> dict:
    kind, task = case.split("-", 1)
    os.environ |= VARIABLES[kind]
    if task == "begin":
        results = search_rounds(directory, kind, 0, 1)
    elif task == "end":
        results = search_rounds(directory, kind, 2, 3)
    elif task == "references":
        results = references(directory, kind, world)
    elif task == "threshold":
        results = threshold_cases(int(os.environ["RANK"]), world)
    elif task == "examples":
        results = evaluated_examples(directory, world)
    elif task == "memory":
        results = twenty_rounds(directory, world)
    else:
        if task == "fp16":  # DeepSpeed requires fast fp16 of a CPU; slow is enough here
            from deepspeed.accelerator import get_accelerator

            get_accelerator().is_fp16_supported = lambda: True
        results = train_cases(kind, task, directory, world)
    for name in VARIABLES[kind]:
        del os.environ[name]
    return results


def end_with_the_tests() -> None:
    """End this process with its parent, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def rank(environment: dict[str, str], directory: Path, cases: list[str], log: Path) -> None:
    """Run the cases of a rank, KIND-TASK each, and end the process."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    threading.Thread(target=end_with_the_tests, daemon=True).start()
    world, index = environment["WORLD_SIZE"], environment["RANK"]
    try:
        for case in cases:
            torch.save(run(case, directory, int(world)), directory / f"{case}-{world}-{index}.pt")
        torch.distributed.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once, for the other ranks to see
    os._exit(0)
