"""Scores: what a weight is worth. Imports no torch; `movement` does the work of MOVEMENT."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lth_scale.config.registry import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from lth_scale.distributed.pieces import Piece


class Accumulate(Protocol):
    """Add one step's contribution to the totals in place; rate: the step's learning rate."""

    def __call__(
        self, totals: "Mapping[str, Tensor]", pieces: "Mapping[str, Piece]", rate: float
    ) -> None: ...


class Score(Protocol):
    """What a weight is worth. The threshold prunes the weights of the lowest score."""

    @property
    def accumulate(self) -> Accumulate | None:
        """Sums scores up over the steps of a round; None if they are read off the weights."""

    @property
    def importance(self) -> "Callable[[Tensor], Tensor]":
        """A weight (or its total) → what it adds to the score of a group of weights."""

    @property
    def to_magnitude(self) -> "Callable[[Tensor], Tensor]":
        """Scores → fp32 numbers whose magnitudes sort as the scores do."""

    @property
    def from_magnitude(self) -> Callable[[float], float]:
        """A threshold among these magnitudes → as a score; 0 stays 0 (nothing was pruned)."""


@dataclass(frozen=True)
class ScoreFunctions:
    """A `Score` from its functions."""

    importance: "Callable[[Tensor], Tensor]"
    to_magnitude: "Callable[[Tensor], Tensor]" = lambda scores: scores
    from_magnitude: Callable[[float], float] = float
    accumulate: Accumulate | None = None


# |w| at the end of a round (the paper)
MAGNITUDE = ScoreFunctions(importance=lambda weights: weights.abs())
# −Σ rate · ∂L/∂w · w over a round, on the masked weights: positive where w moves away from zero.
# Sanh, Wolf & Rush 2020 (arXiv:2005.07683), equation 3
MOVEMENT = ScoreFunctions(
    importance=lambda totals: totals,
    to_magnitude=lazy("lth_scale.pruning.movement:to_magnitude"),
    from_magnitude=lazy("lth_scale.pruning.movement:from_magnitude"),
    accumulate=lazy("lth_scale.pruning.movement:accumulate"),
)
