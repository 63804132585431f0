"""Masks that hardware likes, under the same global threshold: N:M and blocks.

A group or block may lie across ranks, so under sharding each matrix travels once a round, one at a time.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lth_scale.config.checks import parse_pattern
from lth_scale.config.errors import BadInput
from lth_scale.distributed.ranks import Ranks
from lth_scale.pruning import threshold
from lth_scale.pruning.scores import SCORES, Score
from lth_scale.pruning.threshold import ALONE, Weights


@dataclass(frozen=True)
class Orientation:
    """How a rank's parts make up whole matrices. whole(name, part) → (outputs, inputs), the same on every rank;
    cut(name, whole) → this rank's part. By default the parts are the matrices."""

    whole: Callable[[str, Tensor], Tensor] = lambda name, part: part
    cut: Callable[[str, Tensor], Tensor] = lambda name, whole: whole


def oriented(
    transposed: Collection[str],
    whole: Callable[[str, Tensor], Tensor] = lambda name, part: part,
    cut: Callable[[str, Tensor], Tensor] = lambda name, whole: whole,
) -> Orientation:
    """The layout of parameters, which `whole` and `cut` put together and apart in their own shapes.

    transposed: the names of those that are (inputs, outputs). What has more dimensions is a convolution of width 1.
    """
    return Orientation(
        lambda name, part: (
            whole(name, part).T.contiguous() if name in transposed else whole(name, part).flatten(1)
        ),
        lambda name, matrix: cut(name, matrix.T.contiguous() if name in transposed else matrix),
    )


def check(pattern: str, shapes: dict[str, torch.Size], transposed: Collection[str] = ()) -> None:
    """Raise BadInput, naming the matrix, where a pattern does not divide it; transposed as in `oriented`."""
    kind, first, second = parse_pattern(pattern)
    rows, columns = {"n:m": (1, second), "block": (first, second), "unstructured": (1, 1)}[kind]
    for name, shape in shapes.items():
        outputs, inputs = (shape[1], shape[0]) if name in transposed else shape[:2]
        if outputs % rows or inputs % columns:
            raise BadInput(
                f"--pattern {pattern}: {name} is {tuple(shape)}, which it does not divide; give another"
            )


MAGNITUDE = SCORES["magnitude"]


def prune(
    values: Weights,
    keep: Weights,
    sparsity: float,
    scope: str,
    pattern: str,
    ranks: Ranks = ALONE,
    layout: Orientation = Orientation(),
    score: Score = MAGNITUDE,
) -> float:
    """`threshold.prune` under a pattern, of what the values are worth; updates `keep` in place, returns the threshold.

    n:m: at most m − n weights of each m in a row, the inputs of one output, are pruned until all groups are; so at
    1 − n/m the mask is the pattern exactly, and before it every group keeps at least n (as in Zhou et al. 2021,
    arXiv:2102.04010, by magnitude). block:RxC: whole blocks, by the sum of what is in them; `round(sparsity × blocks)`
    of them (as in Narang et al. 2017, arXiv:1711.02782). Raises as `threshold.prune` does.
    """
    kind, first, second = parse_pattern(pattern)
    if kind == "block":
        cut = _prune_blocks(values, keep, sparsity, scope, first, second, layout, score)
    elif kind == "n:m":
        worth = {
            name: score.worth(score.each(value.detach().float())) for name, value in values.items()
        }
        cut = _prune_groups(worth, keep, sparsity, scope, first, second, ranks, layout)
    else:
        cut = threshold.prune(
            {name: score.worth(v) for name, v in values.items()}, keep, sparsity, scope, ranks
        )
    return score.back(cut)


def spare(worth: Tensor, kept: int, of: int) -> Tensor:
    """Bool: the of − kept smallest of each `of` in a row; of equal ones the first. A pruned weight counts as −1."""
    groups = worth.reshape(-1, of)
    order = groups.argsort(dim=1, stable=True)[:, : of - kept]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).view(worth.shape)


def _prune_groups(
    worth: Weights,
    keep: Weights,
    sparsity: float,
    scope: str,
    kept: int,
    of: int,
    ranks: Ranks,
    layout: Orientation,
) -> float:
    allowed, share = {}, 1 - kept / of
    for name, mask in keep.items():
        whole = layout.whole(name, torch.where(mask, worth[name], -1.0))
        free = layout.cut(name, spare(whole, kept, of)).view(mask.shape).to(mask.device)
        largest = torch.full_like(worth[name], torch.finfo(torch.float32).max)
        allowed[name] = torch.where(free | ~worth[name].isfinite(), worth[name], largest)
    if sparsity <= share:
        return threshold.prune(allowed, keep, sparsity, scope, ranks)
    counts = [[int((~mask).sum()), mask.numel()] for mask in keep.values()]
    zeros, size = ranks.sum(torch.tensor(counts).sum(0)).tolist()
    if zeros < round(share * size):
        threshold.prune(allowed, keep, share, scope, ranks)
    return threshold.prune(worth, keep, sparsity, scope, ranks)


def _prune_blocks(
    values: Weights,
    keep: Weights,
    sparsity: float,
    scope: str,
    rows: int,
    columns: int,
    layout: Orientation,
    score: Score,
) -> float:
    worth, blocks = {}, {}
    for name, mask in keep.items():
        whole = layout.whole(name, score.each(values[name].detach().float()) * mask)
        tiles = whole.view(whole.shape[0] // rows, rows, whole.shape[1] // columns, columns)
        worth[name] = score.worth(tiles.double().sum((1, 3)).float())
        blocks[name] = layout.whole(name, mask.float()).view(tiles.shape)[:, 0, :, 0] > 0
    cut = threshold.prune(worth, blocks, sparsity, scope)  # every rank has all blocks
    for name, mask in keep.items():
        whole = blocks[name].repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        mask.copy_(layout.cut(name, whole).view(mask.shape))
    return cut
