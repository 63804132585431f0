"""Collectives over the ranks that hold the pieces."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks of a launch, and those of them that the weights are sharded over.

    index: this rank. shards: the number of ranks that the weights are sharded over; 1 for replicas,
    among which a sum over shards is the number itself. world_size: the number of ranks. device:
    what collectives need their tensors on. cpu_group: a group whose messages do not wait for the
    GPU; None for the default group.
    """

    index: int = 0
    shards: int = 1
    world_size: int = 1
    device: str | torch.device = "cpu"
    cpu_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.index == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Return the sum over all shards, the same on every rank. int64 in and out."""
        return numbers if self.shards == 1 else self._reduce(numbers, dist.ReduceOp.SUM)

    def min(self, number: int) -> int:
        """Return the smallest number of any rank."""
        if self.world_size == 1:
            return number
        return int(self._reduce(torch.tensor([number]), dist.ReduceOp.MIN))

    def max(self, number: int) -> int:
        """Return the largest number of any rank, by CPU messages alone."""
        numbers = torch.tensor([number])
        if self.world_size > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.cpu_group)
        return int(numbers)

    def _reduce(self, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        numbers_on_device = numbers.to(self.device, copy=True)
        dist.all_reduce(numbers_on_device, operation)
        return numbers_on_device.to(numbers.device)
