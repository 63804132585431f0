"""The training loop."""

import math
from collections.abc import Callable, Iterator

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
    """Train from `net.step` to step `until` with pruned weights held at zero.

    rate(step) is the learning rate of an optimizer step. on_step(step, loss) is called after each
    one; loss is this rank's, every --logging_steps, and None in between. Raises Diverged on all
    ranks, by the next logging step, if the loss of any rank is not finite.
    """
    logging_steps = net.args.logging_steps
    net.engine.model.train()
    for batch in micro_batches(net, until):
        with net.accelerator.accumulate(net.engine.model):
            loss = loss_of(net, batch)
            net.engine.backward(loss)
            net.loss_sum += loss.detach()
            if not net.accelerator.sync_gradients:
                continue
            step_optimizer(net, rate(net.step))
        net.step += 1
        is_logged = net.step % logging_steps == 0
        if is_logged or net.step == until:
            check_loss(net)
        on_step(net.step, float(loss.detach()) if is_logged else None)
    assert masking.is_held(net.targets, net.masks), "a pruned weight is not zero"


def micro_batches(net: Network, until: int) -> Iterator[dict[str, Tensor]]:
    """Yield the micro-batches of steps `net.step` to `until`, on the device."""
    args, device = net.args, net.accelerator.device
    steps = net.data_offset + net.step, net.data_offset + until
    numbers = range(*(step * args.gradient_accumulation_steps for step in steps))
    loader = DataLoader(
        net.batches,
        batch_size=None,
        sampler=numbers,
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
        # Otherwise opening the loader draws from the generator of dropout.
        generator=torch.Generator(),
    )
    for batch in loader:
        yield send_to_device(batch, device, non_blocking=True)


def mean_loss(net: Network) -> float:
    """Return the mean loss of a micro-batch over all ranks since the last restart, or 0.0."""
    count = (net.step - net.first_step) * net.args.gradient_accumulation_steps
    return float(net.accelerator.reduce(net.loss_sum, reduction="mean")) / max(1, count)


def check_loss(net: Network) -> None:
    """Raise Diverged on all ranks if the loss of any has been NaN or infinite."""
    if not math.isfinite(float(net.accelerator.reduce(net.loss_sum))):
        raise Diverged(
            f"the loss is NaN or infinite by step {net.step} of {net.steps}; completed rounds are "
            f"kept: lower --learning_rate {net.args.learning_rate}, or warm up, in another "
            "--output_dir"
        )


def loss_of(net: Network, batch: dict[str, Tensor]) -> Tensor:
    """Compute the task's loss of a micro-batch, blended with the teacher's while distilling."""
    loss, outputs = net.task.loss(net.engine.model, batch)
    if not net.distills:
        return loss
    assert net.teacher is not None
    with torch.no_grad(), net.accelerator.autocast():
        _, teacher_outputs = net.task.loss(net.teacher, batch)
    return distillation.blend(loss, outputs, teacher_outputs)


def step_optimizer(net: Network, rate: float) -> Tensor | float | None:
    """Mask the gradients, clip them, and step. Returns the subnetwork's norm before clipping."""
    masking.mask_gradients(net.targets, net.masks)
    if net.on_gradients:
        net.on_gradients(rate)
    for group in net.engine.optimizer.param_groups:
        group["lr"] = rate
    return net.engine.step(net.args.max_grad_norm)
