"""One process, and data parallelism over replicas: every rank holds all weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lth_scale.distributed.engine import Engine
from lth_scale.distributed.pieces import Piece, moments_of


class ReplicatedEngine(Engine):
    """The engine of a single process and of DDP."""

    name = "replicated"
    sharded = False

    def find_piece(self, weight: nn.Parameter) -> Piece:
        return replicated(weight, self.torch_optimizer)

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Let DDP rebuild its buckets, as it does after its first backward pass.

        The sum of three or more floats depends on their order in a bucket: without this, the first
        step of a run would differ from the first step after a rewind or a resume.
        """
        if self.ranks.world_size > 1:
            self.backward(loss())
            self.optimizer.zero_grad()


def replicated(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Piece:
    """Return the piece of a rank that holds the whole parameter."""
    return Piece(
        weight.shape,
        offset=0,
        size=weight.numel(),
        master=lambda: weight.detach().view(-1),
        working=lambda: weight.detach().view(-1),
        gradient=lambda: None if weight.grad is None else weight.grad.view(-1),
        moments=lambda: {k: value.view(-1) for k, value in moments_of(optimizer, weight).items()},
    )
