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
from lth_scale.tasks.base import Task


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
            grouped = compat.length_grouped_indices(self.lengths, self.whole, generator)
            batches = [grouped[i : i + self.whole] for i in range(0, count, self.whole)]
            tail = [batches.pop()] if count % self.whole else []
            shuffled = [
                batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()
            ]
            order = [row for batch in (*shuffled, *tail) for row in batch]
        copies = math.ceil(self.steps_per_epoch * self.whole / count)
        return (order * copies)[: self.steps_per_epoch * self.whole]

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        size, accumulate = (
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps,
        )
        epoch, step = divmod(n // accumulate, self.steps_per_epoch)
        start = step * self.whole + (n % accumulate * self.world + self.rank) * size
        rows = take(self.task.train, self.epoch(epoch)[start : start + size])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                hash((self.args.seed, n, self.rank)) % 2**63
            )  # the CPU's alone
            return self.task.collate(rows)


def take(rows: datasets.Dataset, numbers: list[int]) -> list[dict]:
    """Some rows, read in one go."""
    columns = rows[numbers]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def token_counts(rows: datasets.Dataset) -> list[int]:
    """How many tokens each row has, without making Python objects of the tokens."""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


def extremes(lengths: list[int]) -> tuple[int, int]:
    """The numbers of the shortest and of the longest row."""
    return lengths.index(min(lengths)), lengths.index(max(lengths))
