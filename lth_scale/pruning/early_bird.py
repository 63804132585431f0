"""When to stop training for a mask: once the one it would draw stands still (You et al. 2020, arXiv:1909.11957)."""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from lth_scale.distributed.ranks import Ranks
from lth_scale.pruning.threshold import ALONE

CHECKS = 20  # a round
PATIENCE, STILL = 5, 0.1  # as many distances in a row have to be below


class EarlyBird:
    """Watches the masks that a round would give, one after another.

    The distance of two is the share of what either would newly prune that not both would (Jaccard). The paper takes the
    Hamming distance over all weights, which stays small by itself where a round prunes a tenth.
    """

    def __init__(
        self,
        before: Mapping[str, Tensor],
        ranks: Ranks = ALONE,
        state: Mapping[str, Tensor] | None = None,
    ):
        self.before, self.ranks, state = (
            {name: mask.clone() for name, mask in before.items()},
            ranks,
            state or {},
        )
        self.last = {
            name: state[f"last/{name}"].to(m.device)
            for name, m in before.items()
            if f"last/{name}" in state
        }
        self.distances = deque(state["distances"].tolist() if state else [], maxlen=PATIENCE)
        self.step = int(state["step"]) if state else -1

    def state(self) -> dict[str, Tensor]:
        """What another one goes on from."""
        numbers = {
            "distances": torch.tensor(self.distances, dtype=torch.float64),
            "step": torch.tensor(self.step),
        }
        return {f"last/{name}": mask for name, mask in self.last.items()} | numbers

    def settled(self, masks: dict[str, Tensor], step: int) -> bool:
        """Take the mask of `step` (bool, this rank's parts); True once the last PATIENCE distances are below STILL."""
        self.step = step
        if self.last:
            differ = sum(int((mask ^ self.last[name]).sum()) for name, mask in masks.items())
            either = sum(
                int((self.before[name] & ~(mask & self.last[name])).sum())
                for name, mask in masks.items()
            )
            all_differ, all_either = self.ranks.sum(torch.tensor([differ, either])).tolist()
            self.distances.append(all_differ / max(1, all_either))
        self.last = masks
        return self.is_still()

    def is_still(self) -> bool:
        """True once the last PATIENCE distances are below STILL."""
        return len(self.distances) == PATIENCE and max(self.distances) < STILL
