"""The training loop and evaluation, on all ranks."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import datasets
import numpy
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import get_scheduler

from lth_scale.config.arguments import Training
from lth_scale.config.errors import Diverged
from lth_scale.pruning import masking
from lth_scale.tasks.task import Batch, KeepsPredictions
from lth_scale.training.batches import select_rows, token_counts
from lth_scale.training.networks import Network

TEMPERATURE = 2.0  # of distillation
TEACHER_WEIGHT = 0.5  # of the teacher's term in the loss


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    scores: by metric, the same on every rank; the loss comes last. examples: by name, the results
    of each example; is_constant: whether all validation rows got one prediction; both on the main
    process only, and of a task that is a `KeepsPredictions`.
    """

    scores: Mapping[str, float]
    examples: Mapping[str, numpy.ndarray] = field(default_factory=dict)
    is_constant: bool = False


def train(
    net: Network,
    until: int,
    rate: Callable[[int], float],
    on_step: Callable[[int, float | None], None],
) -> None:
    """Train from `net.step` to step `until` with pruned weights held at zero.

    rate(step) is the learning rate of an optimizer step. on_step(step, loss) is called after each
    one; loss is this rank's, every --logging_steps, and None in between. Raises Diverged on all
    ranks, by the next logging step, if the loss of any rank is not finite.
    """
    net.engine.model.train()
    for batch in _micro_batches(net, until):
        with net.accelerator.accumulate(net.engine.model):
            loss = loss_of(net, batch)
            net.engine.backward(loss)
            net.loss_sum += loss.detach()
            if not net.accelerator.sync_gradients:
                continue
            step_optimizer(net, rate(net.step))
        net.step += 1
        is_logged = net.step % net.args.logging_steps == 0
        is_checked = is_logged or net.step == until
        if is_checked and not math.isfinite(float(net.accelerator.reduce(net.loss_sum))):
            raise Diverged(
                f"the loss is NaN or infinite by step {net.step} of {net.steps}; completed rounds "
                f"are kept: lower --learning_rate {net.args.learning_rate}, or warm up, in "
                "another --output_dir"
            )
        on_step(net.step, float(loss.detach()) if is_logged else None)
    assert masking.is_held(net.targets, net.masks), "a pruned weight is not zero"


def _micro_batches(net: Network, until: int) -> Iterator[Batch]:
    """Yield the micro-batches of steps `net.step` to `until`, on the device."""
    args, device = net.args, net.accelerator.device
    steps = net.data_offset + net.step, net.data_offset + until
    loader = DataLoader(
        net.batches,
        batch_size=None,
        sampler=range(*(step * args.gradient_accumulation_steps for step in steps)),
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
        # Otherwise opening the loader draws from the generator of dropout.
        generator=torch.Generator(),
    )
    for batch in loader:
        yield send_to_device(batch, device, non_blocking=True)


def loss_of(net: Network, batch: Batch) -> Tensor:
    """Compute the task's loss of a micro-batch, blended with the teacher's while distilling."""
    loss, outputs = net.task.loss(net.engine.model, batch)
    if not net.distills:
        return loss
    assert net.teacher is not None
    with torch.no_grad(), net.accelerator.autocast():
        _, teacher_outputs = net.task.loss(net.teacher, batch)
    return blend(loss, outputs, teacher_outputs)


def blend(loss: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Return (1 − w) · loss + w · T² · KL(teacher ‖ student), both softened by the temperature T.

    Hinton, Vinyals & Dean 2015 (arXiv:1503.02531). student, teacher: outputs, with the classes in
    the last dimension. If there is one class (a regression), the mean squared error takes the place
    of the divergence.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        distance = F.mse_loss(student, teacher)
    else:
        log_student = (student / TEMPERATURE).log_softmax(-1)
        log_teacher = (teacher / TEMPERATURE).log_softmax(-1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
        distance = TEMPERATURE**2 * divergence / max(1, student.numel() // student.shape[-1])
    return (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * distance


def step_optimizer(net: Network, rate: float) -> Tensor | float | None:
    """Mask the gradients, clip them, and step. Returns the subnetwork's norm before clipping."""
    masking.mask_gradients(net.targets, net.masks)
    if net.on_gradients:
        net.on_gradients(rate)
    for group in net.engine.optimizer.param_groups:
        group["lr"] = rate
    return net.engine.step(net.args.max_grad_norm)


def learning_rates(args: Training, total: int) -> Callable[[int], float]:
    """Return the function step → learning rate of --lr_scheduler_type over `total` steps."""
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    steps = args.warmup_steps
    warmup = math.ceil(steps * total) if steps < 1 else int(steps)
    schedule = get_scheduler(args.lr_scheduler_type, placeholder, warmup, max(1, total))
    factor = schedule.lr_lambdas[0]
    return lambda step: args.learning_rate * factor(step)


def evaluate(net: Network, on_batch: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate the network on the task's validation rows.

    What belongs to further validation sets has a suffix (MNLI: `accuracy_mismatched`). on_batch is
    called before each batch. Raises Diverged if the loss of a row is not finite.
    """
    first = _evaluate_split(net, net.task.validation, on_batch)
    scores, examples = {**first.scores}, {**first.examples}
    loss = scores.pop("loss")
    for suffix, rows in net.task.more.items():
        further = _evaluate_split(net, rows, on_batch)
        metrics = (metric for metric in further.scores if metric != "loss")
        scores |= {f"{metric}_{suffix}": further.scores[metric] for metric in metrics}
        examples |= {f"{name}_{suffix}": array for name, array in further.examples.items()}
    return Evaluation({**scores, "loss": loss}, examples, first.is_constant)


def _evaluate_split(
    net: Network, rows: datasets.Dataset, on_batch: Callable[[], None]
) -> Evaluation:
    task = net.task
    table, order = results_of(net, rows, on_batch)
    if not numpy.isfinite(table[:, -1]).all():
        raise Diverged(
            f"the loss of a validation row is NaN or infinite after step {net.step}; completed "
            f"rounds are kept: lower --learning_rate {net.args.learning_rate}, in another "
            "--output_dir"
        )
    scores = task.score(table)
    if not (net.accelerator.is_main_process and isinstance(task, KeepsPredictions)):
        return Evaluation(scores)
    kept = task.predictions(table, rows, order)
    return Evaluation(scores, kept.arrays, kept.is_constant)


def results_of(
    net: Network, rows: datasets.Dataset, on_batch: Callable[[], None] = lambda: None
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the task's `rows` of a split, and the number of the row at each position of them."""
    order = numpy.arange(len(rows))
    if net.task.grouped:  # the longest rows first
        order = numpy.argsort(-numpy.array(token_counts(rows)), kind="stable")
    return _score_rows(net, rows, order.tolist(), on_batch), order


@torch.no_grad()
def _score_rows(
    net: Network, rows: datasets.Dataset, order: list[int], on_batch: Callable[[], None]
) -> numpy.ndarray:
    """Return the task's `rows` of a split in this order; the ranks share the batches.

    Every rank evaluates as many batches as the others, so that collectives match.
    """
    task, size = net.task, net.args.per_device_eval_batch_size
    rank, world_size = net.accelerator.process_index, net.accelerator.num_processes
    net.engine.model.eval()
    scored: dict[int, numpy.ndarray] = {}
    count = math.ceil(len(order) / size)
    for turn in range(math.ceil(count / world_size)):
        on_batch()
        number = (turn * world_size + rank) % count
        batch = task.eval_collate(select_rows(rows, order[number * size : (number + 1) * size]))
        batch = send_to_device(batch, net.accelerator.device)
        _, outputs = task.loss(net.engine.model, batch)
        scored[number] = task.rows(outputs, batch)
    by_number = {number: part for each in gather_object([scored]) for number, part in each.items()}
    return numpy.concatenate([by_number[number] for number in range(count)])
