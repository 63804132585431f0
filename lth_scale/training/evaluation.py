"""Evaluation on all ranks."""

import math
from collections.abc import Callable

import datasets
import numpy
import torch
from accelerate.utils import gather_object, send_to_device

from lth_scale.config.errors import Diverged
from lth_scale.training.batches import select_rows, token_counts
from lth_scale.training.networks import Network

OnBatch = Callable[[], None]


def evaluate(net: Network, on_batch: OnBatch | None = None) -> dict[str, float]:
    """Compute the task's metrics on its validation rows, the same on every rank.

    The metrics of further validation sets have a suffix (MNLI: `accuracy_mismatched`), and the loss
    comes last. on_batch is called before each batch.
    """
    metrics = score(net, net.task.validation, on_batch)
    loss = metrics.pop("loss")
    for suffix, rows in net.task.more.items():
        further = score(net, rows, on_batch)
        del further["loss"]
        metrics |= {f"{metric}_{suffix}": value for metric, value in further.items()}
    return {**metrics, "loss": loss}


@torch.no_grad()
def score(
    net: Network, rows: datasets.Dataset, on_batch: OnBatch | None = None
) -> dict[str, float]:
    """Compute the task's metrics on some rows, whose batches the ranks share.

    Every rank evaluates as many batches as the others, so that collectives match. Raises Diverged
    if the loss of a row is not finite.
    """
    batches, rank = eval_batches(net, rows), net.accelerator.process_index
    world_size = net.accelerator.num_processes
    net.engine.model.eval()
    scored: dict[int, numpy.ndarray] = {}
    for turn in range(math.ceil(len(batches) / world_size)):
        if on_batch:
            on_batch()
        number = (turn * world_size + rank) % len(batches)
        batch = net.task.eval_collate(select_rows(rows, batches[number]))
        batch = send_to_device(batch, net.accelerator.device)
        _, outputs = net.task.loss(net.engine.model, batch)
        scored[number] = net.task.rows(outputs, batch)
    by_number = {number: part for each in gather_object([scored]) for number, part in each.items()}
    table = numpy.concatenate([by_number[number] for number in sorted(by_number)])
    if not numpy.isfinite(table[:, -1]).all():
        raise Diverged(
            f"the loss of a validation row is NaN or infinite after step {net.step}; completed "
            f"rounds are kept: lower --learning_rate {net.args.learning_rate}, in another "
            "--output_dir"
        )
    return net.task.score(table)


def eval_batches(net: Network, rows: datasets.Dataset) -> list[list[int]]:
    """Return the row numbers of each batch, the longest rows first if the task groups by length."""
    size, order = net.args.per_device_eval_batch_size, list(range(len(rows)))
    if net.task.grouped:
        lengths = token_counts(rows)
        order.sort(key=lambda row: -lengths[row])
    return [order[start : start + size] for start in range(0, len(order), size)]
