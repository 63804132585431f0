"""One network: prepare it, train it to a step, evaluate it, rewind it in place.

The engine is prepared once. Rewinding copies weights into it and clears what an optimizer remembers,
because a second `prepare` would leave `backward` driving the first engine. Where the weights lie is sharding's.
"""

import copy
import logging
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import datasets
import numpy
import pyarrow.compute
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, gather_object, send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import enable_full_determinism, get_scheduler
from transformers.trainer_pt_utils import get_length_grouped_indices

from lth_scale import distillation, masking, sharding
from lth_scale.arguments import (
    BadInput,
    Diverged,
    Training,
    first_line,
    launched_precision,
    parse_optim_args,
)
from lth_scale.notices import warn
from lth_scale.prunable import base_model
from lth_scale.sharding import Piece, Shards
from lth_scale.tasks import Task, cautions

log = logging.getLogger("lth_scale")

Weights = dict[str, Tensor]
OnStep = Callable[[int, float | None], None]


class Batches(Dataset):
    """Micro-batch n of this rank: a pure function of the seed, n, the rank and the world size.

    So a round can start at any step, and a rewound round sees the very batches of the one before.
    The last batch of an epoch is filled up from the epoch's start.
    """

    def __init__(self, task: Task, args: Training, rank: int, world: int):
        self.task, self.args, self.rank, self.world = task, args, rank, world
        self.lengths = token_counts(task.train) if task.grouped else None
        self.whole = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        self.steps_per_epoch = math.ceil(len(task.train) / self.whole)
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[int]:
        """Row numbers in the order of this epoch: shuffled, or shuffled batches of similar length."""
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        count = len(self.task.train)
        if self.lengths is None:
            order = torch.randperm(count, generator=generator).tolist()
        else:
            grouped = get_length_grouped_indices(self.lengths, self.whole, generator=generator)
            batches = [grouped[i : i + self.whole] for i in range(0, count, self.whole)]
            tail = [batches.pop()] if count % self.whole else []
            shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
            order = [row for batch in (*shuffled, *tail) for row in batch]
        copies = math.ceil(self.steps_per_epoch * self.whole / count)
        return (order * copies)[: self.steps_per_epoch * self.whole]

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        size, accumulate = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        epoch, step = divmod(n // accumulate, self.steps_per_epoch)
        start = step * self.whole + (n % accumulate * self.world + self.rank) * size
        rows = take(self.task.train, self.epoch(epoch)[start : start + size])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.args.seed, n, self.rank)) % 2**63)  # the CPU's alone
            return self.task.collate(rows)


def take(rows: datasets.Dataset, numbers: list[int]) -> list[dict]:
    """Some rows, read in one go."""
    columns = rows[numbers]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def token_counts(rows: datasets.Dataset) -> list[int]:
    """How many tokens each row has, without making Python objects of the tokens."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


@dataclass
class Net:
    """A prepared network and where it stands.

    names: of each prunable parameter, by its name in a ticket, the name in the model; targets: this rank's piece of
    it; masks: the mask of that piece, flat, bool. initial: θ₀, whole, until the first restart takes it. before_step is
    told the learning rate when gradients are masked and no step is taken yet. teacher: whole on every rank, in use
    once it is `taught`.
    """

    accelerator: Accelerator
    task: Task
    args: Training
    shards: Shards
    batches: Batches
    names: Mapping[str, str]
    targets: Mapping[str, Piece]
    masks: dict[str, Tensor]
    initial: Weights
    steps: int  # optimizer steps from θ₀ to the end of a round
    step: int = 0
    consumed: int = 0  # optimizer steps of data before this round's step 0
    began: int = 0  # the step of the last restart
    losses: Tensor = field(default_factory=lambda: torch.zeros(()))  # this rank's, summed over micro-batches since then
    before_step: Callable[[float], None] = lambda rate: None
    teacher: nn.Module | None = None
    taught: bool = False


def make_accelerator(args: Training) -> Accelerator:
    """Accelerate's state for this process. Raises BadInput where launcher and flags do not fit."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    accelerator = sharding.connect(precision, args.gradient_accumulation_steps, args.ddp_timeout)
    if args.full_determinism:
        enable_full_determinism(args.seed)
    overruled = launched_precision().keys() - {accelerator.mixed_precision}
    if overruled and accelerator.is_main_process:
        log.warning("the launcher's precision, %s, is overruled: this is %s", *overruled, accelerator.mixed_precision)
    if accelerator.device.type == "cpu":
        take_cores()
        if accelerator.mixed_precision == "bf16" and accelerator.is_main_process and imitates_bf16():
            log.warning("--bf16: this CPU has no bf16 instructions, and imitating them can take twice as long as fp32 "
                        "does; leave it out, in another --output_dir")  # fmt: skip
    return accelerator


def in_force(accelerator: Accelerator) -> dict[str, Any]:
    """Precision, compile backend and threads as they are, whoever has set them: flags, the launcher or an engine."""
    dynamo = accelerator.state.dynamo_plugin
    return {
        "precision": accelerator.mixed_precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": "no" if dynamo.backend == DynamoBackend.NO else dynamo.to_dict(),
        "threads": torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # of this machine
    }


def imitates_bf16() -> bool:
    """True where torch multiplies bf16 by way of fp32: on an x86 CPU with neither AVX512_BF16 nor AMX."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return platform.machine().lower() in ("x86_64", "amd64") and not native


def take_cores() -> None:
    """Take this process's share of the cores: `accelerate launch` gives a CPU process one thread by default."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def make_optimizer(args: Training, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of --optim over all parameters; matrices decay, vectors do not. Raises BadInput."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trainable if weight.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [weight for weight in trainable if weight.ndim < 2], "weight_decay": 0.0},
    ]
    kinds: dict[str, tuple[type, dict]] = {
        "adamw_torch": (torch.optim.AdamW, {"eps": 1e-8}),
        "adamw_torch_fused": (torch.optim.AdamW, {"eps": 1e-8, "fused": True}),
        "sgd": (torch.optim.SGD, {}),
    }
    if args.optim == "adamw_bnb_8bit":
        kinds[args.optim] = (_bitsandbytes_adamw(device), {"eps": 1e-8})
    kind, options = kinds[args.optim]
    return kind(groups, lr=args.learning_rate, **options | parse_optim_args(args.optim_args, args.optim))


def _bitsandbytes_adamw(device: torch.device) -> type:
    if device.type != "cuda":
        raise BadInput(f"--optim adamw_bnb_8bit: needs a CUDA GPU, this is {device.type}; use --optim adamw_torch")
    try:
        import bitsandbytes
    except ImportError as problem:
        raise BadInput("--optim adamw_bnb_8bit: needs bitsandbytes; pip install 'lth_scale[gpu]'") from problem
    return bitsandbytes.optim.AdamW8bit


def prepare(accelerator: Accelerator, task: Task, args: Training) -> Net:
    """The task's network, ready for its first restart. Raises BadInput."""
    check_forward(task, args)
    model = task.model
    teacher = copy.deepcopy(model).eval() if getattr(args, "distill", False) else None  # before it is cut up
    initial = {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()}
    full = {weight: name for name, weight in model.named_parameters()}
    own = dict(base_model(model).named_parameters())
    names = {name: full[own[name]] for name in task.prunable}
    batches = Batches(task, args, accelerator.process_index, accelerator.num_processes)
    steps = args.max_steps if args.max_steps >= 0 else math.ceil(args.num_train_epochs * batches.steps_per_epoch)
    if steps and batches.whole > len(task.train) and accelerator.is_main_process:
        log.warning(
            "a batch of %d has some of the %d rows of train more than once; lower --per_device_train_batch_size, or "
            "give more rows",
            *(batches.whole, len(task.train)),
        )
    optimizer = make_optimizer(args, model, accelerator.device)
    shards = sharding.prepare(accelerator, model, optimizer, args.per_device_train_batch_size, args.max_grad_norm)
    if steps:
        shards.settle(lambda: task.loss(shards.model, send_to_device(batches[0], accelerator.device))[0])
    return Net(
        accelerator, task, args, shards, batches, names,
        targets={name: shards.pieces[full] for name, full in names.items()},
        masks={}, initial=initial, steps=steps, teacher=teacher,
    )  # fmt: skip


def check_forward(task: Task, args: Training) -> None:
    """Raise BadInput where the network cannot read the task's rows: the shortest, and those padded to the longest.

    It is on the CPU still, and nothing is written yet. What a network decides once, at its first short batch (BigBird
    leaves its sparse attention then), is decided here, so that every round and every resumed run sees the same one.
    """
    splits = {"train": task.train, "validation": task.validation, **task.more}
    counts = {split: token_counts(rows) for split, rows in splits.items()}
    for split, lengths in counts.items():
        if 0 in lengths:
            raise BadInput(
                f"{cautions.named(args, split)}: row {lengths.index(0) + 1} is empty, and the tokenizer of "
                f"{args.model_name_or_path} adds no token to it; fill it, or remove the row"
            )
    (shortest, longest), (briefest, _) = extremes(counts["train"]), extremes(counts["validation"])
    name = f"--model_name_or_path {args.model_name_or_path}: {type(task.model).__name__}"
    try:
        batches = [task.collate(take(task.train, rows)) for rows in ([shortest], [shortest, longest])]
        batches.append(task.eval_collate(take(task.validation, [briefest])))
        outputs = [outputs_of(task, batch) for batch in (*batches, batches[0])]
    except Exception as problem:  # a network may raise any kind
        raise BadInput(
            f"{name} cannot read the rows of --task {args.task} ({first_line(problem)}); give another encoder"
        ) from problem
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise BadInput(f"{name} gives NaN or infinity for rows of --task {args.task}; give another encoder")
    if not torch.equal(outputs[0], outputs[-1]):
        warn("%s draws numbers that no seed decides: the same command gives other scores another time", name)


@torch.no_grad()
def outputs_of(task: Task, batch: dict[str, Tensor]) -> Tensor:
    """What the network gives for a batch as it trains; always with the same random numbers, and leaving them be."""
    task.model.train()
    with torch.random.fork_rng(devices=[]):
        return task.loss(task.model, batch)[1]


def extremes(lengths: list[int]) -> tuple[int, int]:
    """The numbers of the shortest and of the longest row."""
    return lengths.index(min(lengths)), lengths.index(max(lengths))


def with_seed(net: Net, seed: int) -> Net:
    """The same network with the data order of another seed."""
    args = replace(net.args, seed=seed)
    return replace(net, args=args, batches=Batches(net.task, args, net.batches.rank, net.batches.world))


def teach(net: Net, weights: Weights) -> None:
    """Let the dense network with these weights be the teacher of all further training."""
    assert net.teacher is not None, "no teacher was prepared"
    own = dict(net.teacher.named_parameters())
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    net.teacher.to(net.accelerator.device).requires_grad_(False)
    net.taught = True


def restart(net: Net, weights: Weights, masks: dict[str, Tensor], step: int, seed: int, consumed: int = 0) -> None:
    """Put the network at m ⊙ `weights`, step `step`, as if it had been made now.

    weights, masks: whole tensors, of which each rank takes its pieces. Clears optimizer moments and the loss scale,
    seeds every generator with `seed`, and places the data at `consumed` + `step`. All in place: no engine is made anew.
    """
    net.shards.write(weights)
    net.masks = {
        name: piece.cut(masks[name]).to(piece.master().device, copy=True) for name, piece in net.targets.items()
    }
    masking.apply(net.targets, net.masks)
    net.shards.publish()
    net.shards.forget()
    set_seed((seed + net.accelerator.process_index) % 2**32)
    net.step, net.began, net.consumed = step, step, consumed
    net.losses = torch.zeros((), device=net.accelerator.device)


def learning_rates(args: Training, total: int) -> Callable[[int], float]:
    """step → learning rate under --lr_scheduler_type over `total` steps."""
    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    warmup = math.ceil(args.warmup_steps * total) if args.warmup_steps < 1 else int(args.warmup_steps)
    factor = get_scheduler(args.lr_scheduler_type, nothing, warmup, max(1, total)).lr_lambdas[0]
    return lambda step: args.learning_rate * factor(step)


def train(net: Net, until: int, rate: Callable[[int], float], on_step: OnStep) -> None:
    """Train from net.step to step `until` with pruned weights held at zero.

    rate(step) is the learning rate of each optimizer step. on_step(step, loss) is called after each one;
    loss is this rank's, and None but every --logging_steps. Raises Diverged on all ranks, by the next of those steps,
    where the loss of any is no number.
    """
    accelerator, args = net.accelerator, net.args
    accumulate = args.gradient_accumulation_steps
    numbers = range((net.consumed + net.step) * accumulate, (net.consumed + until) * accumulate)
    loader = DataLoader(
        net.batches, batch_size=None, sampler=numbers,
        num_workers=args.dataloader_num_workers, pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # else opening the loader draws from the generator that dropout uses
    )  # fmt: skip
    net.shards.model.train()
    for batch in loader:
        with accelerator.accumulate(net.shards.model):
            loss = loss_of(net, send_to_device(batch, accelerator.device, non_blocking=True))
            net.shards.backward(loss)
            net.losses += loss.detach()
            if not accelerator.sync_gradients:
                continue
            step_optimizer(net, rate(net.step))
        net.step += 1
        if net.step in (until, net.step // args.logging_steps * args.logging_steps):
            check_loss(net)
        on_step(net.step, float(loss.detach()) if net.step % args.logging_steps == 0 else None)
    assert masking.is_held(net.targets, net.masks), "a pruned weight is not zero"


def mean_loss(net: Net) -> float:
    """The mean loss of a micro-batch, over all ranks, since the last restart; 0 where nothing was trained."""
    count = (net.step - net.began) * net.args.gradient_accumulation_steps
    return float(net.accelerator.reduce(net.losses, reduction="mean")) / max(1, count)


def check_loss(net: Net) -> None:
    """Raise Diverged on all ranks where a rank's sum of losses is no number."""
    if not math.isfinite(float(net.accelerator.reduce(net.losses))):
        raise Diverged(
            f"the loss is NaN or infinite by step {net.step} of {net.steps}; the rounds before this one stand: lower "
            f"--learning_rate {net.args.learning_rate}, or warm up, in another --output_dir"
        )


def loss_of(net: Net, batch: dict[str, Tensor]) -> Tensor:
    """The task's loss of one micro-batch, blended with the teacher's where there is one."""
    loss, outputs = net.task.loss(net.shards.model, batch)
    if not net.taught:
        return loss
    assert net.teacher is not None
    with torch.no_grad(), net.accelerator.autocast():
        _, taught = net.task.loss(net.teacher, batch)
    return distillation.blend(loss, outputs, taught)


def step_optimizer(net: Net, rate: float) -> Tensor | float | None:
    """Mask the gradients, clip what is left, and step. Returns the norm before clipping, that of the subnetwork."""
    masking.mask_gradients(net.targets, net.masks)
    net.before_step(rate)
    for group in net.shards.optimizer.param_groups:
        group["lr"] = rate
    return net.shards.step(net.args.max_grad_norm)


def evaluate(net: Net, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The task's metrics on its validation rows, the same on every rank and for every number of ranks.

    on_batch is called before each batch. Further validation sets give their metrics under a suffix (MNLI:
    `accuracy_mismatched`).
    """
    found = score(net, net.task.validation, on_batch)
    loss = {"loss": found.pop("loss")}
    for suffix, rows in net.task.more.items():
        more = score(net, rows, on_batch)
        found |= {f"{metric}_{suffix}": value for metric, value in more.items() if metric != "loss"}
    return found | loss


@torch.no_grad()
def score(net: Net, rows: datasets.Dataset, on_batch: Callable[[], None]) -> dict[str, float]:
    """The task's metrics on some rows, whose batches the ranks take in turn."""
    size, world = net.args.per_device_eval_batch_size, net.accelerator.num_processes
    order = list(range(len(rows)))
    if net.task.grouped:
        lengths = token_counts(rows)
        order.sort(key=lambda i: -lengths[i])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    net.shards.model.eval()
    found: dict[int, numpy.ndarray] = {}
    for turn in range(math.ceil(len(batches) / world)):  # every rank takes as many turns
        on_batch()
        number = (turn * world + net.accelerator.process_index) % len(batches)
        batch = net.task.eval_collate(take(rows, batches[number]))
        batch = send_to_device(batch, net.accelerator.device)
        found[number] = net.task.rows(net.task.loss(net.shards.model, batch)[1], batch)
    everything: dict[int, numpy.ndarray] = {}
    for part in gather_object([found]):
        everything |= part
    table = numpy.concatenate([everything[number] for number in sorted(everything)])
    if not numpy.isfinite(table[:, -1]).all():
        raise Diverged(
            f"the loss of a validation row is NaN or infinite after step {net.step}; the rounds before this one stand: "
            f"lower --learning_rate {net.args.learning_rate}, in another --output_dir"
        )
    return net.task.score(table)
