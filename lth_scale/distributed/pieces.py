"""A model's encoder, the ranks of a launch, and the pieces of parameters that each rank holds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


def base_model(model: nn.Module) -> nn.Module:
    """Return the encoder without its task head; an encoder is returned unchanged."""
    return getattr(model, "base_model", model)


@dataclass(frozen=True)
class Ranks:
    """The ranks of a launch, and those of them that the weights are sharded over.

    index: this rank. shards: the number of ranks that the weights are sharded over; 1 for replicas.
    device: where collectives need their tensors. cpu_group: a group whose messages do not wait for
    the GPU; None for the default group.
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
        """Return the int64 sum over all shards, the same on every rank."""
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
        on_device = numbers.to(self.device, copy=True)
        dist.all_reduce(on_device, operation)
        return on_device.to(numbers.device)


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter: `size` elements from `offset` on, flattened row-major.

    The callables return flat views of live memory, without padding. master: the fp32 weights that
    the optimizer updates. working: the weights that the forward pass reads; the master itself if
    there is one copy. gradient: what the next step reads, or None outside backward … step. moments:
    the optimizer's states of the weights' shape, by their keys (exp_avg …). A piece may be empty.
    """

    shape: torch.Size
    offset: int
    size: int
    master: Callable[[], Tensor]
    working: Callable[[], Tensor]
    gradient: Callable[[], Tensor | None]
    moments: Callable[[], dict[str, Tensor]]

    def cut(self, whole: Tensor) -> Tensor:
        """Return the same part of a tensor of the parameter's shape."""
        return whole.reshape(-1)[self.offset : self.offset + self.size]


def moments_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return the optimizer's states of `weight` that have its shape and are not 8-bit codes."""
    return {
        key: value
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point()
    }
