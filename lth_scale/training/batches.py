"""Micro-batches as a pure function of the seed."""

import math
from functools import lru_cache

import datasets
import pyarrow.compute
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lth_scale.config.arguments import Training
from lth_scale.distributed import compat
from lth_scale.tasks.task import Task


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
        self.lengths = token_counts(task.train) if task.grouped else None
        self.row_order = lru_cache(maxsize=2)(self._row_order)

    def _row_order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        count = len(self.task.train)
        if self.lengths is None:
            order = torch.randperm(count, generator=generator).tolist()
        else:
            order = self._grouped_by_length(self.lengths, generator)
        needed = self.steps_per_epoch * self.batch_size
        return (order * math.ceil(needed / count))[:needed]

    def _grouped_by_length(self, lengths: list[int], generator: torch.Generator) -> list[int]:
        """Shuffle batches of rows of similar length; an incomplete batch stays last."""
        size = self.batch_size
        rows = compat.length_grouped_indices(lengths, size, generator=generator)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        incomplete = [batches.pop()] if len(rows) % size else []
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [row for batch in (*(batches[i] for i in order), *incomplete) for row in batch]

    def __getitem__(self, n: int) -> dict[str, Tensor]:
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


def select_rows(rows: datasets.Dataset, numbers: list[int]) -> list[dict]:
    """Read the rows of these numbers at once."""
    columns = rows[numbers]
    values = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def token_counts(rows: datasets.Dataset) -> list[int]:
    """Return the number of tokens of each row, without creating Python objects for the tokens."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()
