"""The piece of a parameter that this rank holds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter: `size` elements from `offset` on, flattened row-major.

    The callables return flat views of live memory, without padding. master: the fp32 weights that
    the optimizer updates. working: the weights that the forward pass reads, the master itself if
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


def empty_piece(shape: torch.Size, like: Tensor) -> Piece:
    """Return the piece of a rank that holds nothing of a parameter like `like`."""
    empty = torch.empty(0, device=like.device)
    return Piece(shape, 0, 0, lambda: empty, lambda: empty.to(like.dtype), lambda: None, dict)


def moments_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return the optimizer's states of `weight` that have its shape and are not 8-bit codes."""
    return {
        key: value
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point()
    }
