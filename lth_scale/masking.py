"""Keep pruned weights at exactly zero while a network trains.

Masked weights, masked gradients and clean optimizer moments are enough: AdamW and SGD then leave
exact zeros where the mask is 0, weight decay and momentum included, because every term of their
updates there is a multiple of zero. Gradients are masked before they are clipped, so that the norm
is the subnetwork's.
"""

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor


def apply(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set pruned weights to +0.0 in place. Same names, shapes and devices on both sides."""
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_(~mask, 0.0)


def mask_gradients(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Multiply each gradient by its mask in place; a weight without gradient is left alone."""
    for name, mask in masks.items():
        gradient = weights[name].grad
        if gradient is None:
            continue
        if gradient.device.type == "cpu" and gradient.dtype == torch.float32:
            view = gradient.numpy()  # fp32 × bool: faster in numpy than in torch (benchmarks/README.md)
            numpy.multiply(view, mask.numpy(), out=view)
        else:
            gradient.mul_(mask)


def is_held(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> bool:
    """True where every pruned weight is exactly zero."""
    return not any(bool(weights[name].masked_select(~mask).any()) for name, mask in masks.items())
