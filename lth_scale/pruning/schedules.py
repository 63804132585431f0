"""Schedules: the sparsities of the rounds of a search."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """How sparsity grows from round to round."""

    def count(self, target: float, rate: float, start: float = 0.0) -> float:
        """How many rounds after round 0 lead from `start` to `target`, to be rounded up."""

    def sparsities(self, target: float, rate: float, start: float = 0.0) -> list[float]:
        """The sparsity of rounds 0, 1, …, K as fractions of the prunable set; the last is `target`.

        A search that starts from a ticket starts at the sparsity of the ticket.
        """


@dataclass(frozen=True)
class Formula:
    """A `Schedule` by formula.

    pruned: (share to prune in all, rate, k) → the share pruned after round k. rounds: (start, near,
    target, rate) → how many rounds lead from `start` to `near`, the point from which the last step
    goes to `target`. of_original: shares are of the original weights; else of those that remain at
    the start.
    """

    pruned: Callable[[float, float, int], float]
    rounds: Callable[[float, float, float, float], float]
    of_original: bool = False

    def count(self, target: float, rate: float, start: float = 0.0) -> float:
        """The count, as in `Schedule`."""
        if start >= target:
            return 0
        if rate == 1:
            return 1
        return max(1.0, self.rounds(start, max(start, target - rate / 100), target, rate))

    def sparsities(self, target: float, rate: float, start: float = 0.0) -> list[float]:
        """The ladder, as in `Schedule`."""
        # Rounding to 12 digits makes 3 × 0.1 equal 0.3.
        # A last step of less than a hundredth of the rate is merged into the step before it.
        if start >= target:
            return [start]
        share = target - start if self.of_original else (target - start) / (1 - start)
        ladder = [start]
        for k in range(1, math.ceil(self.count(target, rate, start))):
            pruned = self.pruned(share, rate, k)
            sparsity = start + pruned if self.of_original else 1 - (1 - start) * (1 - pruned)
            if sparsity >= target - rate / 100:
                break
            ladder.append(round(sparsity, 12))
        return [*ladder, target]


# `rate` of the original weights a round: the official code
LINEAR = Formula(
    pruned=lambda share, rate, k: rate * k,
    rounds=lambda start, near, target, rate: (near - start) / rate,
    of_original=True,
)
# `rate` of the remaining weights a round: the text of the paper
GEOMETRIC = Formula(
    pruned=lambda share, rate, k: 1 - (1 - rate) ** k,
    rounds=lambda start, near, target, rate: (
        (math.log1p(-near) - math.log1p(-start)) / math.log1p(-rate)
    ),
)
ONE_SHOT = Formula(pruned=lambda share, rate, k: share, rounds=lambda start, near, target, rate: 1)
# Zhu & Gupta 2017 (arXiv:1710.01878), equation 1
CUBIC = Formula(
    pruned=lambda share, rate, k: share * (1 - (1 - min(1, k / math.ceil(share / rate))) ** 3),
    rounds=lambda start, near, target, rate: (target - start) / (1 - start) / rate,
)
