"""What torch.compile has to know of the operators: the shapes they return."""

from typing import Any

import torch
from torch import Tensor

from lth_scale.shipping.native.modules import TILE


@torch.library.register_fake("lth_scale::enter")
def _enter(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], (x.shape[1] + TILE - 1) // TILE, x.shape[2], TILE)


@torch.library.register_fake("lth_scale::leave")
def _leave(x: Tensor, length: int) -> Tensor:
    return x.new_empty(x.shape[0], length, x.shape[2])


@torch.library.register_fake("lth_scale::layer")
def _layer(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("lth_scale::linear")
def _linear(x: Tensor, packed: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)
