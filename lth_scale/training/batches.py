"""Micro-batches as a pure function of the seed, and whether a network can read the rows."""

import math
from functools import lru_cache

import datasets
import pyarrow.compute
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat
from lth_scale.tasks import data_warnings
from lth_scale.tasks.task import Batch, Row, Task


class Batches(Dataset):
    """Micro-batch n of this rank, as a function of the seed, n, the rank and the world size alone.

    A round can therefore start at any step, and a rewound round sees the same batches again. The
    last batch of an epoch is filled up with rows from the start of the epoch.
    """

    def __init__(self, task: Task, args: Training, rank: int, world_size: int):
        self.task, self.args, self.rank, self.world_size = task, args, rank, world_size
        self.micro_batch_size = args.per_device_train_batch_size
        self.accumulation_steps = args.gradient_accumulation_steps
        self.batch_size = self.micro_batch_size * self.accumulation_steps * world_size
        self.steps_per_epoch = math.ceil(len(task.train) / self.batch_size)
        self.lengths = token_counts(task.train) if task.grouped else []
        self.row_order = lru_cache(maxsize=2)(self._row_order)

    def _row_order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        count, size = len(self.task.train), self.batch_size
        if self.lengths:  # shuffle batches of similar rows; an incomplete one stays last
            rows = compat.length_grouped_indices(self.lengths, size, generator=generator)
            complete = count // size
            batches = [*torch.randperm(complete, generator=generator).tolist(), complete]
            order = [row for n in batches for row in rows[n * size : (n + 1) * size]]
        else:
            order = torch.randperm(count, generator=generator).tolist()
        needed = self.steps_per_epoch * size
        return (order * math.ceil(needed / count))[:needed]

    def __getitem__(self, n: int) -> Batch:
        step, micro_step = divmod(n, self.accumulation_steps)
        epoch, step = divmod(step, self.steps_per_epoch)
        position = micro_step * self.world_size + self.rank
        start = step * self.batch_size + position * self.micro_batch_size
        numbers = self.row_order(epoch)[start : start + self.micro_batch_size]
        rows = select_rows(self.task.train, numbers)
        with torch.random.fork_rng(devices=[]):
            # Seeds the CPU's generator alone: dropout on GPUs draws from theirs.
            torch.default_generator.manual_seed(hash((self.args.seed, n, self.rank)) % 2**63)
            return self.task.collate(rows)


def select_rows(rows: datasets.Dataset, numbers: list[int]) -> list[Row]:
    """Return the rows of these numbers, which are read all at once."""
    columns = rows[numbers]
    values = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def token_counts(rows: datasets.Dataset) -> list[int]:
    """Return the number of tokens of each row, without creating Python objects for the tokens."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


def check_forward(task: Task, args: Training) -> None:
    """Run forward passes of the shortest rows, and of rows padded to the longest, on the CPU.

    Networks that choose an implementation at their first short batch (BigBird drops its sparse
    attention then) choose it here, so that every round and every resumed run uses the same one.
    Raises BadInput if a row is empty, a pass fails or an output is not finite.
    """
    for split, rows in {"train": task.train, "validation": task.validation, **task.more}.items():
        lengths = token_counts(rows)
        if 0 in lengths:
            raise BadInput(
                f"{data_warnings.split_name(args, split)}: row {lengths.index(0) + 1} is empty, "
                f"and the tokenizer of {args.model_name_or_path} adds no token; fill it, or "
                "remove the row"
            )
    name = f"--model_name_or_path {args.model_name_or_path}: {type(task.model).__name__}"
    try:
        batches = _probe_batches(task)
        outputs = [_training_outputs(task, batch) for batch in (*batches, batches[0])]
    except Exception as problem:  # a network may raise any exception
        raise BadInput(
            f"{name} cannot read the rows of --task {args.task} ({first_line(problem)}); "
            "use another encoder"
        ) from problem
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise BadInput(
            f"{name} returns NaN or infinity for rows of --task {args.task}; use another encoder"
        )
    if not torch.equal(outputs[0], outputs[-1]):
        warn(
            "%s draws random numbers that --seed does not control: the same command gives "
            "different scores each time",
            name,
        )


def _probe_batches(task: Task) -> list[Batch]:
    """Return the shortest row of train, it and the longest, and the shortest of validation."""
    train, validation = token_counts(task.train), token_counts(task.validation)
    shortest, longest = train.index(min(train)), train.index(max(train))
    return [
        task.collate(select_rows(task.train, [shortest])),
        task.collate(select_rows(task.train, [shortest, longest])),
        task.eval_collate(select_rows(task.validation, [validation.index(min(validation))])),
    ]


@torch.no_grad()
def _training_outputs(task: Task, batch: Batch) -> Tensor:
    """Return the outputs in training mode, always for the same state of the CPU's generator."""
    task.model.train()
    with torch.random.fork_rng(devices=[]):
        return task.loss(task.model, batch)[1]
