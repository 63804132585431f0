"""One network: prepare it, train it to a step, evaluate it, rewind it in place.

The engine is prepared once. Rewinding copies weights into it and clears what an optimizer remembers,
because a second `prepare` would leave `backward` driving the first engine. Where the weights lie is sharding's.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.texts import first_line
from lth_scale.distributed.encoder import base_model
from lth_scale.distributed.engine import Engine
from lth_scale.distributed.engines import prepare_engine
from lth_scale.distributed.pieces import Piece
from lth_scale.pruning import masking
from lth_scale.tasks import data_warnings
from lth_scale.tasks.base import Task
from lth_scale.training.batches import Batches, extremes, take, token_counts
from lth_scale.training.optimizers import make_optimizer

log = logging.getLogger("lth_scale")
Weights = dict[str, Tensor]


@dataclass
class Network:
    """A prepared network and where it stands.

    names: of each prunable parameter, by its name in a ticket, the name in the model; targets: this rank's piece of
    it; masks: the mask of that piece, flat, bool. initial: θ₀, whole, until the first restart takes it. on_gradients is
    told the learning rate when gradients are masked and no step is taken yet. teacher: whole on every rank, in use
    once it is `taught`.
    """

    accelerator: Accelerator
    task: Task
    args: Training
    engine: Engine
    batches: Batches
    names: Mapping[str, str]
    targets: Mapping[str, Piece]
    masks: dict[str, Tensor]
    initial: Weights
    steps: int  # optimizer steps from θ₀ to the end of a round
    step: int = 0
    consumed: int = 0  # optimizer steps of data before this round's step 0
    began: int = 0  # the step of the last restart
    losses: Tensor = field(
        default_factory=lambda: torch.zeros(())
    )  # this rank's, summed over micro-batches since then
    on_gradients: Callable[[float], None] = lambda rate: None
    teacher: nn.Module | None = None
    taught: bool = False


def prepare(accelerator: Accelerator, task: Task, args: Training) -> Network:
    """The task's network, ready for its first restart. Raises BadInput."""
    check_forward(task, args)
    model = task.model
    teacher = (
        copy.deepcopy(model).eval() if getattr(args, "distill", False) else None
    )  # before it is cut up
    initial = {
        name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()
    }
    full = {weight: name for name, weight in model.named_parameters()}
    own = dict(base_model(model).named_parameters())
    names = {name: full[own[name]] for name in task.prunable}
    batches = Batches(task, args, accelerator.process_index, accelerator.num_processes)
    steps = (
        args.max_steps
        if args.max_steps >= 0
        else math.ceil(args.num_train_epochs * batches.steps_per_epoch)
    )
    if steps and batches.whole > len(task.train) and accelerator.is_main_process:
        log.warning(
            "a batch of %d has some of the %d rows of train more than once; lower --per_device_train_batch_size, or "
            "give more rows",
            *(batches.whole, len(task.train)),
        )
    optimizer = make_optimizer(args, model, accelerator.device)
    engine = prepare_engine(
        accelerator, model, optimizer, args.per_device_train_batch_size, args.max_grad_norm
    )
    if steps:
        engine.warm_up(
            lambda: task.loss(engine.model, send_to_device(batches[0], accelerator.device))[0]
        )
    return Network(
        accelerator,
        task,
        args,
        engine,
        batches,
        names,
        targets={name: engine.pieces[full] for name, full in names.items()},
        masks={},
        initial=initial,
        steps=steps,
        teacher=teacher,
    )


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
                f"{data_warnings.named(args, split)}: row {lengths.index(0) + 1} is empty, and the tokenizer of "
                f"{args.model_name_or_path} adds no token to it; fill it, or remove the row"
            )
    (shortest, longest), (briefest, _) = extremes(counts["train"]), extremes(counts["validation"])
    name = f"--model_name_or_path {args.model_name_or_path}: {type(task.model).__name__}"
    try:
        batches = [
            task.collate(take(task.train, rows)) for rows in ([shortest], [shortest, longest])
        ]
        batches.append(task.eval_collate(take(task.validation, [briefest])))
        outputs = [outputs_of(task, batch) for batch in (*batches, batches[0])]
    except Exception as problem:  # a network may raise any kind
        raise BadInput(
            f"{name} cannot read the rows of --task {args.task} ({first_line(problem)}); give another encoder"
        ) from problem
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise BadInput(
            f"{name} gives NaN or infinity for rows of --task {args.task}; give another encoder"
        )
    if not torch.equal(outputs[0], outputs[-1]):
        warn(
            "%s draws numbers that no seed decides: the same command gives other scores another time",
            name,
        )


@torch.no_grad()
def outputs_of(task: Task, batch: dict[str, Tensor]) -> Tensor:
    """What the network gives for a batch as it trains; always with the same random numbers, and leaving them be."""
    task.model.train()
    with torch.random.fork_rng(devices=[]):
        return task.loss(task.model, batch)[1]


def with_seed(net: Network, seed: int) -> Network:
    """The same network with the data order of another seed."""
    args = replace(net.args, seed=seed)
    return replace(
        net, args=args, batches=Batches(net.task, args, net.batches.rank, net.batches.world)
    )


def teach(net: Network, weights: Weights) -> None:
    """Let the dense network with these weights be the teacher of all further training."""
    assert net.teacher is not None, "no teacher was prepared"
    own = dict(net.teacher.named_parameters())
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    net.teacher.to(net.accelerator.device).requires_grad_(False)
    net.taught = True


def restart(
    net: Network,
    weights: Weights,
    masks: dict[str, Tensor],
    step: int,
    seed: int,
    consumed: int = 0,
) -> None:
    """Put the network at m ⊙ `weights`, step `step`, as if it had been made now.

    weights, masks: whole tensors, of which each rank takes its pieces. Clears optimizer moments and the loss scale,
    seeds every generator with `seed`, and places the data at `consumed` + `step`. All in place: no engine is made anew.
    """
    net.engine.load_weights(weights)
    net.masks = {
        name: piece.cut(masks[name]).to(piece.master().device, copy=True)
        for name, piece in net.targets.items()
    }
    masking.apply(net.targets, net.masks)
    net.engine.sync()
    net.engine.reset()
    set_seed((seed + net.accelerator.process_index) % 2**32)
    net.step, net.began, net.consumed = step, step, consumed
    net.losses = torch.zeros((), device=net.accelerator.device)
