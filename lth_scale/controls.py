"""Controls: the sparsity of a ticket without its finding."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale import threshold


def random_mask(keep: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Tensor]:
    """A mask of `keep`'s names and shapes with exactly `count` places pruned uniformly at random.

    Equivalent to the paper's m_RP (paper_reference, procedure.m_RP). The same seed gives nested masks.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(mask.shape, generator=generator) for name, mask in keep.items()}
    masks = {name: torch.ones(mask.shape, dtype=torch.bool) for name, mask in keep.items()}
    threshold.smallest(scores, masks, count)
    return masks
