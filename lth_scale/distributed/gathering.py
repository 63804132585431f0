"""Whole tensors from the pieces of all ranks."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from lth_scale.distributed.pieces import Piece
from lth_scale.distributed.ranks import Ranks


def gather(
    parts: Mapping[str, Tensor], pieces: Mapping[str, Piece], ranks: Ranks
) -> dict[str, Tensor]:
    """See `Engine.gather`."""
    wholes = {}
    for name, part in parts.items():
        whole = _reduce_bits(part, pieces[name], ranks)
        if ranks.is_main:
            whole = whole.to("cpu", copy=True).view(part.dtype)
            wholes[name] = whole.view(pieces[name].shape)
    return wholes


def _reduce_bits(part: Tensor, piece: Piece, ranks: Ranks) -> Tensor:
    bits = part.view(torch.int32 if part.dtype == torch.float32 else torch.uint8)
    if ranks.shards == 1:
        return bits
    whole = torch.zeros(piece.shape.numel(), dtype=bits.dtype, device=ranks.device)
    piece.cut(whole).copy_(bits)
    dist.reduce(whole, 0)  # an element is zero on all ranks but one: the sum of bits is exact
    return whole


def all_gather(part: Tensor, piece: Piece, ranks: Ranks) -> Tensor:
    """See `Engine.all_gather`."""
    if ranks.shards == 1:
        return part.view(piece.shape)
    whole = torch.zeros(piece.shape.numel(), dtype=torch.int32, device=ranks.device)
    piece.cut(whole).copy_(part.view(torch.int32))
    dist.all_reduce(whole)  # as in `gather`
    return whole.view(torch.float32).view(piece.shape)
