"""Keep pruned weights at exactly zero while a network trains, however it is sharded.

Masked weights, masked gradients and clean optimizer moments are enough: every term in the updates
of AdamW and SGD is then a multiple of zero where the mask is 0, weight decay and momentum included.
Gradients are masked before clipping, so that the norm is the subnetwork's. Working copies in bf16
or fp16 are rounded from the master copy: zero stays zero.
"""

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from lth_scale.distributed.pieces import Piece

Pieces = Mapping[str, Piece]
Masks = Mapping[str, Tensor]  # flat bool tensors, laid out as the pieces of the same names


def apply(pieces: Pieces, masks: Masks) -> None:
    """Set pruned weights to +0.0 in the master copy, in place."""
    for name, mask in masks.items():
        pieces[name].master().masked_fill_(~mask, 0.0)


def mask_gradients(pieces: Pieces, masks: Masks) -> None:
    """Multiply each gradient by its mask in place; skip weights without a gradient."""
    for name, mask in masks.items():
        gradient = pieces[name].gradient()
        if gradient is None:
            continue
        if gradient.device.type == "cpu" and gradient.dtype == torch.float32:
            # fp32 × bool is faster in numpy than in torch (benchmarks/README.md)
            numbers = gradient.numpy()
            numpy.multiply(numbers, mask.numpy(), out=numbers)
        else:
            gradient.mul_(mask)


def is_held(pieces: Pieces, masks: Masks) -> bool:
    """True if every pruned weight is exactly zero in all copies and in the optimizer's moments."""
    return not any(
        copy[~mask.to(copy.device)].any()
        for name, mask in masks.items()
        for copy in (
            pieces[name].master(),
            pieces[name].working(),
            *pieces[name].moments().values(),
        )
    )
