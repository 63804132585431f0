"""What a weight is worth: its magnitude, or its movement, summed up while a round trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lth_scale.distributed.pieces import Piece

LARGEST = 2.0**126  # scores beyond it are all worth the same
SIGN = 1 << 31


@torch.no_grad()
def accumulate(moved: dict[str, Tensor], pieces: Mapping[str, Piece], rate: float) -> None:
    """Add −rate · ∂L/∂w · w of this step, in place: positive where w moves away from zero.

    Sanh, Wolf & Rush 2020 (arXiv:2005.07683), equation 3, on the weights themselves, masked as they are.
    """
    for name, score in moved.items():
        gradient = pieces[name].gradient()
        if gradient is not None:
            score.addcmul_(gradient.float(), pieces[name].master(), value=-rate)


def as_magnitude(score: Tensor) -> Tensor:
    """Positive fp32 numbers in the order of signed `score` (its last bit is lost): what a threshold can cut.

    NaN and Inf give NaN.
    """
    bits = (score.clamp(-LARGEST, LARGEST) + 0.0).view(torch.int32).long()  # −0 is 0
    order = torch.where(bits < 0, bits ^ (SIGN - 1), bits) + SIGN
    return torch.where(score.isfinite(), (order >> 1).int().view(torch.float32), torch.nan)


def from_magnitude(magnitude: float) -> float:
    """The score that `as_magnitude` turned into `magnitude`, but for its last bit; 0 stays 0 (nothing was pruned)."""
    if magnitude == 0:
        return 0.0
    order = (int(torch.tensor(magnitude).view(torch.int32)) << 1) - SIGN
    bits = order ^ (SIGN - 1) if order < 0 else order
    return float(torch.tensor(bits, dtype=torch.int64).int().view(torch.float32))


@dataclass(frozen=True)
class Score:
    """How a threshold compares the values of weights.

    each: a value as what a group of weights sums up; worth: such a sum as a number whose magnitude a threshold cuts;
    back: the threshold as a value again.
    """

    each: Callable[[Tensor], Tensor]
    worth: Callable[[Tensor], Tensor]
    back: Callable[[float], float]


SCORES = {
    "magnitude": Score(torch.abs, lambda value: value, float),
    "movement": Score(lambda value: value, as_magnitude, from_magnitude),
}
