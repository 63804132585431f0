"""The training loop."""

import math
from collections.abc import Callable

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from lth_scale.config.errors import Diverged
from lth_scale.pruning import masking
from lth_scale.training import distillation
from lth_scale.training.networks import Network

OnStep = Callable[[int, float | None], None]


def train(net: Network, until: int, rate: Callable[[int], float], on_step: OnStep) -> None:
    """Train from net.step to step `until` with pruned weights held at zero.

    rate(step) is the learning rate of each optimizer step. on_step(step, loss) is called after each one;
    loss is this rank's, and None but every --logging_steps. Raises Diverged on all ranks, by the next of those steps,
    where the loss of any is no number.
    """
    accelerator, args = net.accelerator, net.args
    accumulate = args.gradient_accumulation_steps
    numbers = range((net.consumed + net.step) * accumulate, (net.consumed + until) * accumulate)
    loader = DataLoader(
        net.batches,
        batch_size=None,
        sampler=numbers,
        num_workers=args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # else opening the loader draws from the generator that dropout uses
    )
    net.engine.model.train()
    for batch in loader:
        with accelerator.accumulate(net.engine.model):
            loss = loss_of(net, send_to_device(batch, accelerator.device, non_blocking=True))
            net.engine.backward(loss)
            net.losses += loss.detach()
            if not accelerator.sync_gradients:
                continue
            step_optimizer(net, rate(net.step))
        net.step += 1
        if net.step in (until, net.step // args.logging_steps * args.logging_steps):
            check_loss(net)
        on_step(net.step, float(loss.detach()) if net.step % args.logging_steps == 0 else None)
    assert masking.is_held(net.targets, net.masks), "a pruned weight is not zero"


def mean_loss(net: Network) -> float:
    """The mean loss of a micro-batch, over all ranks, since the last restart; 0 where nothing was trained."""
    count = (net.step - net.began) * net.args.gradient_accumulation_steps
    return float(net.accelerator.reduce(net.losses, reduction="mean")) / max(1, count)


def check_loss(net: Network) -> None:
    """Raise Diverged on all ranks where a rank's sum of losses is no number."""
    if not math.isfinite(float(net.accelerator.reduce(net.losses))):
        raise Diverged(
            f"the loss is NaN or infinite by step {net.step} of {net.steps}; the rounds before this one stand: lower "
            f"--learning_rate {net.args.learning_rate}, or warm up, in another --output_dir"
        )


def loss_of(net: Network, batch: dict[str, Tensor]) -> Tensor:
    """The task's loss of one micro-batch, blended with the teacher's where there is one."""
    loss, outputs = net.task.loss(net.engine.model, batch)
    if not net.taught:
        return loss
    assert net.teacher is not None
    with torch.no_grad(), net.accelerator.autocast():
        _, taught = net.task.loss(net.teacher, batch)
    return distillation.blend(loss, outputs, taught)


def step_optimizer(net: Network, rate: float) -> Tensor | float | None:
    """Mask the gradients, clip what is left, and step. Returns the norm before clipping, that of the subnetwork."""
    masking.mask_gradients(net.targets, net.masks)
    net.on_gradients(rate)
    for group in net.engine.optimizer.param_groups:
        group["lr"] = rate
    return net.engine.step(net.args.max_grad_norm)
