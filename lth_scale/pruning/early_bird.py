"""Early-bird stopping: end training once the mask it would give has converged.

You et al. 2020, arXiv:1909.11957.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale.distributed.ranks import Ranks
from lth_scale.pruning.threshold import ALONE

CHECKS = 20  # a round
PATIENCE = 5  # successive distances that have to be below TOLERANCE
TOLERANCE = 0.1


class EarlyBird:
    """Compares the successive masks that a round would give.

    The distance of two masks is the Jaccard distance of the sets of weights that they would newly
    prune. The paper takes the Hamming distance over all weights, which is small anyway if a round
    prunes a tenth.

    before: the masks in force, bool, this rank's pieces. state: to go on from, as `state` returned.
    """

    def __init__(
        self,
        before: Mapping[str, Tensor],
        ranks: Ranks = ALONE,
        state: Mapping[str, Tensor] | None = None,
    ):
        state = state or {}
        self.before = {name: mask.clone() for name, mask in before.items()}
        self.ranks = ranks
        self.last = {
            name: state[f"last/{name}"].to(mask.device)
            for name, mask in before.items()
            if f"last/{name}" in state
        }
        self.distances = deque(state["distances"].tolist() if state else [], maxlen=PATIENCE)
        self.step = int(state["step"]) if state else -1

    def state(self) -> dict[str, Tensor]:
        """The tensors that another `EarlyBird` can go on from."""
        return {f"last/{name}": mask for name, mask in self.last.items()} | {
            "distances": torch.tensor(self.distances, dtype=torch.float64),
            "step": torch.tensor(self.step),
        }

    def update(self, masks: dict[str, Tensor], step: int) -> bool:
        """Compare the masks of `step` with the last; return `converged`."""
        self.step = step
        if self.last:
            self.distances.append(self._distance(masks))
        self.last = masks
        return self.converged

    def _distance(self, masks: dict[str, Tensor]) -> float:
        differ = sum(int((mask ^ self.last[name]).sum()) for name, mask in masks.items())
        union = sum(
            int((self.before[name] & ~(mask & self.last[name])).sum())
            for name, mask in masks.items()
        )
        differ, union = self.ranks.sum(torch.tensor([differ, union])).tolist()
        return differ / max(1, union)

    @property
    def converged(self) -> bool:
        """True once the last PATIENCE distances are below TOLERANCE."""
        return len(self.distances) == PATIENCE and max(self.distances) < TOLERANCE
