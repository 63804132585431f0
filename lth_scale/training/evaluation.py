"""Evaluation on all ranks."""

import math
from collections.abc import Callable

import datasets
import numpy
import torch
from accelerate.utils import gather_object, send_to_device

from lth_scale.config.errors import Diverged
from lth_scale.training.batches import take, token_counts
from lth_scale.training.networks import Network


def evaluate(net: Network, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
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
def score(net: Network, rows: datasets.Dataset, on_batch: Callable[[], None]) -> dict[str, float]:
    """The task's metrics on some rows, whose batches the ranks take in turn."""
    size, world = net.args.per_device_eval_batch_size, net.accelerator.num_processes
    order = list(range(len(rows)))
    if net.task.grouped:
        lengths = token_counts(rows)
        order.sort(key=lambda i: -lengths[i])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    net.engine.model.eval()
    found: dict[int, numpy.ndarray] = {}
    for turn in range(math.ceil(len(batches) / world)):  # every rank takes as many turns
        on_batch()
        number = (turn * world + net.accelerator.process_index) % len(batches)
        batch = net.task.eval_collate(take(rows, batches[number]))
        batch = send_to_device(batch, net.accelerator.device)
        found[number] = net.task.rows(net.task.loss(net.engine.model, batch)[1], batch)
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
