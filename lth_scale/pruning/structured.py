"""Masks that hardware can exploit, under the same exact threshold: N:M and blocks.

A group or block may lie across ranks, so under sharding each matrix is gathered once a round, one
at a time.
"""

import torch
from torch import Tensor

from lth_scale.distributed.ranks import Ranks
from lth_scale.pruning import threshold
from lth_scale.pruning.orientation import Orientation
from lth_scale.pruning.patterns import Pattern, PruningStep, Unstructured
from lth_scale.pruning.scores import MAGNITUDE, Score
from lth_scale.pruning.threshold import ALONE, Weights

UNSTRUCTURED, MATRICES = Unstructured(), Orientation()


def prune(
    values: Weights,
    keep: Weights,
    sparsity: float,
    scope: str = "global",
    pattern: Pattern = UNSTRUCTURED,
    ranks: Ranks = ALONE,
    orientation: Orientation = MATRICES,
    score: Score = MAGNITUDE,
) -> float:
    """`threshold.prune` under a pattern: update `keep` in place and return the threshold.

    Arguments as in `PruningStep`. Raises as `threshold.prune` does.
    """
    return pattern.prune(PruningStep(values, keep, sparsity, scope, ranks, orientation, score))


def prune_weights(step: PruningStep) -> float:
    """Prune single weights; return the threshold, a score."""
    magnitudes = {name: step.score.to_magnitude(value) for name, value in step.values.items()}
    return _cut(step, magnitudes, step.sparsity)


def prune_groups(step: PruningStep, kept: int, of: int) -> float:
    """Keep `kept` of each `of` consecutive weights in a row; return the threshold, a score.

    At most of − kept weights of a group are pruned until every group has lost as many. So the mask
    is the pattern exactly at sparsity 1 − kept/of, and below it every group keeps at least `kept`
    (as in Zhou et al. 2021, arXiv:2102.04010, by magnitude).
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
    """The magnitudes, with the largest fp32 number where the pattern keeps a weight."""
    protected = {}
    for name, mask in step.keep.items():
        magnitude = magnitudes[name]
        matrix = step.orientation.whole(name, torch.where(mask, magnitude, -1.0))
        smallest = step.orientation.cut(name, smallest_in_groups(matrix, kept, of))
        smallest = smallest.view(mask.shape).to(mask.device)
        largest = torch.full_like(magnitude, torch.finfo(torch.float32).max)
        protected[name] = torch.where(smallest | ~magnitude.isfinite(), magnitude, largest)
    return protected


def smallest_in_groups(magnitudes: Tensor, kept: int, of: int) -> Tensor:
    """Bool: True for the of − kept smallest of each `of` in a row; of equal ones the first.

    magnitudes: a matrix (outputs, inputs), −1 where a weight is pruned.
    """
    groups = magnitudes.reshape(-1, of)
    order = groups.argsort(dim=1, stable=True)[:, : of - kept]
    smallest = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
    return smallest.view(magnitudes.shape)


def prune_blocks(step: PruningStep, rows: int, columns: int) -> float:
    """Prune `round(sparsity × blocks)` whole blocks of the lowest score; return the threshold.

    A block's score is the sum of its weights' importance (as in Narang et al. 2017,
    arXiv:1711.02782).
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
