"""One network: prepared once, trained to a step, rewound in place.

Rewinding copies weights into the prepared engine and clears the state of its optimizer: a second
`prepare` would leave `backward` driving the first engine.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn

from lth_scale.config.arguments import Training
from lth_scale.config.errors import warn
from lth_scale.distributed.engine import Engine
from lth_scale.distributed.engines import prepare_engine
from lth_scale.distributed.pieces import Piece, base_model
from lth_scale.pruning import masking
from lth_scale.pruning.prunable_set import base_digest, prunable
from lth_scale.tasks.task import Task
from lth_scale.training.batches import Batches, check_forward
from lth_scale.training.optimizers import make_optimizer

Weights = dict[str, Tensor]


@dataclass
class Network:
    """A prepared network and its state between steps.

    base_sha256: the digest of the base model. initial: θ₀ whole, until the first restart takes it.
    names: of each prunable parameter, its name in the model by its name in a ticket. targets: this
    rank's piece of it; masks: the mask of that piece (flat, bool). round_steps: optimizer steps
    from θ₀ to the end of a round; length: how many times as long this training is. step: the steps
    taken; first_step: those taken at the last restart;
    data_offset: optimizer steps of data before step 0. loss_sum: over this rank's micro-batches
    since the last restart. on_gradients: called with the learning rate once gradients are masked,
    before the step. teacher: the dense network, whole on every rank, used once `distills` is set.
    """

    accelerator: Accelerator
    task: Task
    args: Training
    base_sha256: str
    initial: Weights
    teacher: nn.Module | None
    batches: Batches
    round_steps: int
    engine: Engine
    names: Mapping[str, str]
    targets: Mapping[str, Piece]
    masks: dict[str, Tensor] = field(default_factory=dict)
    length: int = 1
    step: int = 0
    first_step: int = 0
    data_offset: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    on_gradients: Callable[[float], None] | None = None
    distills: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps from θ₀ to the end of the training."""
        return self.round_steps * self.length


def prunable_names(task: Task, args: Training) -> tuple[str, ...]:
    """Return the prunable set that --ignore leaves of a task's network, by names in the base."""
    return tuple(prunable(task.model, args.ignore or (), task.fresh))


def prepare(
    accelerator: Accelerator,
    task: Task,
    args: Training,
    matrices: Sequence[str] = (),
    with_teacher: bool = False,
) -> Network:
    """Prepare the task's network for its first restart. Raises BadInput.

    matrices: names of the prunable weights in the base model (default: `prunable_names`).
    with_teacher: also keep a copy to distill from.
    """
    check_forward(task, args)
    model = task.model
    # Everything that needs the whole model, before the engine shards it.
    weights = dict(model.named_parameters())
    initial = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
    base_sha256 = base_digest(model, task.fresh)
    teacher = copy.deepcopy(model).eval() if with_teacher else None
    full_names = {weight: name for name, weight in weights.items()}
    encoder = dict(base_model(model).named_parameters())
    matrices = matrices or prunable_names(task, args)
    names = {name: full_names[encoder[name]] for name in matrices}
    batches = Batches(task, args, accelerator.process_index, accelerator.num_processes)
    steps = _steps_per_round(args, batches)

    optimizer = make_optimizer(args, model, accelerator.device)
    micro_batch, max_norm = args.per_device_train_batch_size, args.max_grad_norm
    engine = prepare_engine(accelerator, model, optimizer, micro_batch, max_norm)
    if steps:
        device = accelerator.device
        engine.warm_up(lambda: task.loss(engine.model, send_to_device(batches[0], device))[0])
    targets = {name: engine.pieces[full_name] for name, full_name in names.items()}
    return Network(
        accelerator,
        task,
        args,
        base_sha256,
        initial,
        teacher,
        batches,
        steps,
        engine,
        names,
        targets,
    )


def _steps_per_round(args: Training, batches: Batches) -> int:
    """Return the optimizer steps of a round, and warn if a batch is larger than the data."""
    epochs = math.ceil(args.num_train_epochs * batches.steps_per_epoch)
    steps = epochs if args.max_steps < 0 else args.max_steps
    if steps and batches.batch_size > (rows := len(batches.task.train)):
        warn(
            "a batch of %d repeats some of the %d rows of train; lower "
            "--per_device_train_batch_size, or provide more rows",
            batches.batch_size,
            rows,
        )
    return steps


def with_seed(net: Network, seed: int, length: int = 1) -> Network:
    """Return the same network with the data order of another seed, to train `length` rounds."""
    args = replace(net.args, seed=seed)
    batches = Batches(net.task, args, net.batches.rank, net.batches.world_size)
    return replace(net, args=args, batches=batches, length=length)


def set_teacher(net: Network, weights: Weights) -> None:
    """Distill from the dense network with these weights in all further training."""
    assert net.teacher is not None, "no teacher was prepared"
    with torch.no_grad():
        for name, weight in net.teacher.named_parameters():
            weight.copy_(weights[name])
    net.teacher.to(net.accelerator.device).requires_grad_(False)
    net.distills = True


def restart(
    net: Network,
    weights: Weights,
    masks: dict[str, Tensor],
    step: int,
    seed: int,
    data_offset: int = 0,
) -> None:
    """Set the network to m ⊙ `weights` at step `step`, in place, as if it had just been prepared.

    weights, masks: whole tensors, of which each rank takes its pieces. Clears the optimizer's
    moments and the loss scale, seeds every generator with `seed`, and continues the data at step
    `data_offset` + `step`.
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
    net.step, net.first_step, net.data_offset = step, step, data_offset
    net.loss_sum = torch.zeros((), device=net.accelerator.device)
