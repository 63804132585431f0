"""The exact k-th smallest magnitude of many tensors, by counting on bit patterns; and the masks it gives.

The bit pattern of a non-negative fp32 number, read as an integer, sorts as the number does. Two
histograms (16 high bits, then the 15 low bits within one bin) find the threshold exactly in two
passes that never sort, concatenate or copy the weights as a whole.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Found = tuple[dict[str, Tensor], float]  # masks, and the largest magnitude pruned
LOW_BITS = 15
BINS = 1 << 16
INFINITE = 0x7F800000


def magnitude_bits(name: str, weight: Tensor) -> Tensor:
    """|weight| as the int32 bit patterns of fp32, flat. Raises ValueError on NaN or Inf, naming the parameter."""
    bits = weight.detach().reshape(-1).float().abs().view(torch.int32)
    if bits.numel() and int(bits.max()) >= INFINITE:
        raise ValueError(f"{name}: holds NaN or Inf; its magnitudes have no order")
    return bits


def smallest(weights: Mapping[str, Tensor], keep: Mapping[str, Tensor], count: int) -> Found:
    """Prune `count` weights in all: those `keep` has pruned already, then the smallest |w| of the others.

    weights: floating tensors by name; keep: bool tensors of the same names and shapes, on the same device.
    Returns (new masks, the largest |w| pruned now; 0.0 where nothing new is). Masks are nested in `keep`.
    Exactly `count` places are False. Ties at the threshold go by (order of names, flat index), lowest first.
    Raises ValueError where a weight is NaN or Inf.
    """
    pruned = sum(mask.numel() - int(mask.sum()) for mask in keep.values())
    total = sum(mask.numel() for mask in keep.values())
    assert pruned <= count <= total, f"{count} of {total} cannot be pruned where {pruned} are"
    new = count - pruned
    if new == 0:
        for name in keep:
            magnitude_bits(name, weights[name])
        return {name: mask.clone() for name, mask in keep.items()}, 0.0
    high, before = _find_bin(weights, keep, new, lambda bits: bits >> LOW_BITS)
    low, before_low = _find_bin(
        weights, keep, new - before, lambda bits: bits[bits >> LOW_BITS == high] & ((1 << LOW_BITS) - 1)
    )
    cut = (high << LOW_BITS) | low
    ties = new - before - before_low
    masks = {}
    for name, mask in keep.items():
        bits, kept = magnitude_bits(name, weights[name]), mask.reshape(-1)
        survives = kept & (bits > cut)
        tied = (kept & (bits == cut)).nonzero().flatten()
        survives[tied[ties:]] = True
        ties -= min(ties, tied.numel())
        masks[name] = survives.view(mask.shape)
    return masks, float(torch.tensor(cut, dtype=torch.int32).view(torch.float32))


def _find_bin(
    weights: Mapping[str, Tensor], keep: Mapping[str, Tensor], rank: int, digit: Callable[[Tensor], Tensor]
) -> tuple[int, int]:
    """(the bin that holds the rank-th smallest kept magnitude, how many lie in the bins below it)."""
    histogram = torch.zeros(BINS, dtype=torch.int64)
    for name, mask in keep.items():
        kept = magnitude_bits(name, weights[name])[mask.reshape(-1)]
        histogram += torch.bincount(digit(kept), minlength=BINS).cpu()
    below = histogram.cumsum(0)
    found = int(torch.searchsorted(below, rank))
    return found, int(below[found] - histogram[found])


def prune(weights: Mapping[str, Tensor], keep: Mapping[str, Tensor], sparsity: float, scope: str) -> Found:
    """Masks of exactly `round(sparsity × prunable)` pruned weights, nested in `keep`, and their threshold.

    scope `global`: one cut through all matrices (the paper's); `layerwise`: one for each matrix, with
    counts whose running sum is the rounded running share, so that the total is exact as well.
    """
    if scope == "global":
        return smallest(weights, keep, round(sparsity * sum(mask.numel() for mask in keep.values())))
    masks: dict[str, Tensor] = {}
    threshold, seen = 0.0, 0
    for name, mask in keep.items():
        count = round(sparsity * (seen + mask.numel())) - round(sparsity * seen)
        count = max(count, mask.numel() - int(mask.sum()))
        one, cut = smallest({name: weights[name]}, {name: mask}, count)
        masks |= one
        threshold, seen = max(threshold, cut), seen + mask.numel()
    return masks, threshold
