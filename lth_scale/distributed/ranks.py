"""Collectives over the ranks that hold the pieces."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that hold the other pieces. Alone, or among replicas, a sum is the number itself.

    index: this rank. count: how many ranks the pieces are spread over. everyone: how many there are. side: a group
    whose messages do not wait for the GPU.
    """

    index: int = 0
    count: int = 1
    everyone: int = 1
    device: str | torch.device = "cpu"
    side: Any = None

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the ranks that hold pieces, the same on all of them; int64 in and out."""
        return numbers if self.count == 1 else self._reduce(numbers, dist.ReduceOp.SUM)

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        return (
            number
            if self.everyone == 1
            else int(self._reduce(torch.tensor([number]), dist.ReduceOp.MIN))
        )

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers, told from CPU to CPU."""
        numbers = torch.tensor([number])
        if self.everyone > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.side)
        return int(numbers)

    def _reduce(self, numbers: Tensor, how: Any) -> Tensor:
        on_wire = numbers.to(self.device, copy=True)
        dist.all_reduce(on_wire, how)
        return on_wire.to(numbers.device)
