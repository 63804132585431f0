"""Pruning under a pattern and by a score, with the same exact threshold.

A group or block may span ranks, so that sharded matrices are gathered, one at a time.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale.distributed.pieces import Piece
from lth_scale.pruning import threshold
from lth_scale.pruning.patterns import PruningStep

Weights = Mapping[str, Tensor]
LARGEST = 2.0**126  # larger accumulated scores are clamped
SIGN = 1 << 31


def prune_weights(step: PruningStep) -> float:
    """Prune single weights; return the threshold, a score."""
    magnitudes = {name: step.score.to_magnitude(value) for name, value in step.values.items()}
    return _cut(step, magnitudes, step.sparsity)


def prune_groups(step: PruningStep, kept: int, of: int) -> float:
    """Keep `kept` of each `of` consecutive weights in a row; return the threshold, a score.

    At most of − kept weights of a group are pruned until every group has lost that many: the mask
    is the pattern exactly at sparsity 1 − kept/of, and below it every group keeps at least `kept`.
    By magnitude, the full pattern is that of NVIDIA's ASP (Mishra et al. 2021, arXiv:2104.08378),
    without its permutation of channels.
    """
    magnitudes = {
        name: step.score.to_magnitude(step.score.importance(value.detach().float()))
        for name, value in step.values.items()
    }
    allowed = _protect(step, magnitudes, kept, of)
    share = 1 - kept / of
    if step.sparsity <= share:
        return _cut(step, allowed, step.sparsity)
    counts = torch.tensor([[int((~mask).sum()), mask.numel()] for mask in step.keep.values()])
    pruned, size = step.ranks.sum(counts.sum(0)).tolist()
    if pruned < round(share * size):
        _cut(step, allowed, share)
    return _cut(step, magnitudes, step.sparsity)


def _cut(step: PruningStep, magnitudes: Weights, sparsity: float) -> float:
    cut = threshold.prune(magnitudes, step.keep, sparsity, step.scope, step.ranks)
    return step.score.from_magnitude(cut)


def _protect(step: PruningStep, magnitudes: Weights, kept: int, of: int) -> Weights:
    """The magnitudes, with the largest fp32 number where the pattern keeps a weight.

    The pattern prunes the of − kept smallest of each `of` in a row, and the first of equal ones.
    """
    protected = {}
    for name, mask in step.keep.items():
        magnitude = magnitudes[name]
        matrix = step.orientation.whole(name, torch.where(mask, magnitude, -1.0))
        groups = matrix.reshape(-1, of)
        order = groups.argsort(dim=1, stable=True)[:, : of - kept]
        smallest = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
        smallest = step.orientation.cut(name, smallest.view(matrix.shape))
        smallest = smallest.view(mask.shape).to(mask.device)
        largest = torch.full_like(magnitude, torch.finfo(torch.float32).max)
        protected[name] = torch.where(smallest | ~magnitude.isfinite(), magnitude, largest)
    return protected


def prune_blocks(step: PruningStep, rows: int, columns: int) -> float:
    """Prune `round(sparsity × blocks)` whole blocks of the lowest score; return the threshold.

    A block's score is the sum of its weights' importance, so that every weight counts. This is our
    choice: Narang et al. 2017 (arXiv:1711.02782), whose blocks these are, take the maximum.
    """
    magnitudes, blocks = {}, {}
    for name, mask in step.keep.items():
        importance = step.score.importance(step.values[name].detach().float()) * mask
        matrix = step.orientation.whole(name, importance)
        tiles = matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
        magnitudes[name] = step.score.to_magnitude(tiles.double().sum((1, 3)).float())
        kept = step.orientation.whole(name, mask.float())
        blocks[name] = kept.view(tiles.shape)[:, 0, :, 0] > 0
    cut = threshold.prune(magnitudes, blocks, step.sparsity, step.scope)  # every rank has all
    for name, mask in step.keep.items():
        matrix = blocks[name].repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        mask.copy_(step.orientation.cut(name, matrix).view(mask.shape))
    return step.score.from_magnitude(cut)


@torch.no_grad()
def accumulate(totals: Weights, pieces: Mapping[str, Piece], rate: float) -> None:
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
