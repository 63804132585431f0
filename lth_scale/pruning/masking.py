"""Keep pruned weights at exactly zero while a network trains, wherever its pieces lie.

Masked weights, masked gradients and clean optimizer moments are enough: AdamW and SGD then leave
exact zeros where the mask is 0, weight decay and momentum included, because every term of their
updates there is a multiple of zero. Gradients are masked before they are clipped, so that the norm
is the subnetwork's. Working copies in bf16 or fp16 are the master rounded, and zero stays zero.
"""

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from lth_scale.distributed.pieces import Piece

Pieces = Mapping[str, Piece]
Masks = Mapping[str, Tensor]  # flat bool tensors, laid out as the pieces of the same names


def apply(pieces: Pieces, masks: Masks) -> None:
    """Set pruned weights to +0.0 in the master, in place."""
    for name, mask in masks.items():
        pieces[name].master().masked_fill_(~mask, 0.0)


def mask_gradients(pieces: Pieces, masks: Masks) -> None:
    """Multiply each gradient by its mask in place; a weight without gradient is left alone."""
    for name, mask in masks.items():
        gradient = pieces[name].gradient()
        if gradient is None:
            continue
        if gradient.device.type == "cpu" and gradient.dtype == torch.float32:
            view = (
                gradient.numpy()
            )  # fp32 × bool: faster in numpy than in torch (benchmarks/README.md)
            numpy.multiply(view, mask.numpy(), out=view)
        else:
            gradient.mul_(mask)


def is_held(pieces: Pieces, masks: Masks) -> bool:
    """True where every pruned weight is exactly zero in all its copies and in the optimizer's moments."""
    for name, mask in masks.items():
        piece, pruned = pieces[name], ~mask
        copies = [piece.master(), piece.working(), *piece.moments().values()]
        if any(bool(copy[pruned.to(copy.device)].any()) for copy in copies):
            return False
    return True
