"""Movement pruning: accumulate scores over training, and map them to what a threshold can cut."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale.distributed.pieces import Piece

LARGEST = 2.0**126  # larger scores are clamped
SIGN = 1 << 31


@torch.no_grad()
def accumulate(totals: Mapping[str, Tensor], pieces: Mapping[str, Piece], rate: float) -> None:
    """Add −rate · ∂L/∂w · w of this step in place. totals: flat fp32, laid out as the pieces."""
    for name, total in totals.items():
        gradient = pieces[name].gradient()
        if gradient is not None:
            total.addcmul_(gradient.float(), pieces[name].master(), value=-rate)


def to_magnitude(scores: Tensor) -> Tensor:
    """Positive fp32 numbers that sort as the signed fp32 scores do, except for their last bit.

    NaN and Inf become NaN.
    """
    bits = (scores.clamp(-LARGEST, LARGEST) + 0.0).view(torch.int32).long()  # + 0.0 turns −0 into 0
    order = torch.where(bits < 0, bits ^ (SIGN - 1), bits) + SIGN
    return torch.where(scores.isfinite(), (order >> 1).int().view(torch.float32), torch.nan)


def from_magnitude(magnitude: float) -> float:
    """The inverse of `to_magnitude`, except for the last bit; 0 stays 0 (nothing was pruned)."""
    if magnitude == 0:
        return 0.0
    order = (int(torch.tensor(magnitude).view(torch.int32)) << 1) - SIGN
    bits = order ^ (SIGN - 1) if order < 0 else order
    return float(torch.tensor(bits, dtype=torch.int64).int().view(torch.float32))
