"""Early-bird stopping: end training once the mask it would give has converged.

You et al. 2020, arXiv:1909.11957.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale.distributed.pieces import Ranks
from lth_scale.pruning.threshold import ALONE

CHECKS = 20  # a round
PATIENCE = 5  # successive distances that have to be below TOLERANCE
TOLERANCE = 0.1


class EarlyBird:
    """Compares the successive masks that a round would give.

    The distance of two masks is the Jaccard distance of the sets of weights that they would newly
    prune; the paper's Hamming distance over all weights is always small if a round prunes a tenth.

    before: the masks in force, bool, this rank's pieces. state: to continue from, of `state()`.
    """

    def __init__(
        self,
        before: Mapping[str, Tensor],
        ranks: Ranks = ALONE,
        state: Mapping[str, Tensor] | None = None,
    ):
        state = state or {}
        self.before, self.ranks = {name: mask.clone() for name, mask in before.items()}, ranks
        self.last = {
            name: state[f"last/{name}"].to(mask.device)
            for name, mask in before.items()
            if f"last/{name}" in state
        }
        self.distances = deque(state["distances"].tolist() if state else [], maxlen=PATIENCE)
        self.step = int(state["step"]) if state else -1

    def state(self) -> dict[str, Tensor]:
        """The tensors that another `EarlyBird` can continue from."""
        return {f"last/{name}": mask for name, mask in self.last.items()} | {
            "distances": torch.tensor(self.distances, dtype=torch.float64),
            "step": torch.tensor(self.step),
        }

    def update(self, masks: dict[str, Tensor], step: int) -> bool:
        """Compare the masks of `step` with the last; return `converged`."""
        if self.last:
            counts = torch.zeros(2, dtype=torch.int64)
            for name, mask in masks.items():
                last = self.last[name]
                union = self.before[name] & ~(mask & last)
                counts += torch.tensor([int((mask ^ last).sum()), int(union.sum())])
            differ, newly_pruned = self.ranks.sum(counts).tolist()
            self.distances.append(differ / max(1, newly_pruned))
        self.last, self.step = masks, step
        return self.converged

    @property
    def converged(self) -> bool:
        """True once the last PATIENCE distances are below TOLERANCE."""
        return len(self.distances) == PATIENCE and max(self.distances) < TOLERANCE
