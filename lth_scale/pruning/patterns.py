"""Scores and patterns: what a weight is worth, and which weights are pruned together.

Imports no torch; `structured` does the work.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from lth_scale.config.registry import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from lth_scale.distributed.pieces import Piece, Ranks

Accumulate = Callable[["Mapping[str, Tensor]", "Mapping[str, Piece]", float], None]


@dataclass(frozen=True)
class Score:
    """What a weight is worth. The threshold prunes the weights of the lowest score.

    importance: weights (or their totals) → what each adds to the score of its group. to_magnitude:
    scores → fp32 numbers whose magnitudes sort as the scores do. from_magnitude: its inverse for a
    threshold; 0 stays 0 (nothing was pruned). accumulate: (totals, pieces, learning rate) adds one
    step's contribution to a round's totals in place; None if weights are scored as they are.
    """

    importance: "Callable[[Tensor], Tensor]"
    to_magnitude: "Callable[[Tensor], Tensor]" = lambda scores: scores
    from_magnitude: Callable[[float], float] = float
    accumulate: Accumulate | None = None


# |w| at the end of a round (the paper)
MAGNITUDE = Score(importance=lambda weights: weights.abs())
# −Σ rate · ∂L/∂w · w over a round, on the masked weights: positive where w moves away from zero.
# The first-order Taylor expansion of the loss of pruning w (Molchanov et al. 2019,
# arXiv:1906.10771), signed and accumulated over training
ACCUMULATED_TAYLOR = Score(
    importance=lambda totals: totals,
    to_magnitude=lazy("lth_scale.pruning.structured:to_magnitude"),
    from_magnitude=lazy("lth_scale.pruning.structured:from_magnitude"),
    accumulate=lazy("lth_scale.pruning.structured:accumulate"),
)


@dataclass(frozen=True)
class Orientation:
    """How this rank's pieces make up matrices (outputs, inputs).

    transposed: the names of parameters that are (inputs, outputs). gather: (name, piece) → the
    whole parameter, the same on every rank. scatter: (name, whole parameter) → this rank's piece.
    By default the pieces are whole. A parameter of more dimensions is a convolution of width 1.
    """

    transposed: Collection[str] = ()
    gather: "Callable[[str, Tensor], Tensor]" = lambda name, piece: piece
    scatter: "Callable[[str, Tensor], Tensor]" = lambda name, parameter: parameter

    def whole(self, name: str, piece: "Tensor") -> "Tensor":
        """The matrix, the same on every rank."""
        parameter = self.gather(name, piece)
        return parameter.T.contiguous() if name in self.transposed else parameter.flatten(1)

    def cut(self, name: str, matrix: "Tensor") -> "Tensor":
        """This rank's piece of a matrix."""
        return self.scatter(name, matrix.T.contiguous() if name in self.transposed else matrix)


@dataclass(frozen=True)
class PruningStep:
    """One pruning step, for a `Pattern` to carry out.

    values: this rank's pieces of the weights, or of the totals of `score`, by name, floating point.
    keep: the masks to update in place, bool tensors of the same shapes, True keeps. sparsity: of
    all ranks' `keep` afterwards. scope: `global` or `layerwise`.
    """

    values: "Mapping[str, Tensor]"
    keep: "Mapping[str, Tensor]"
    sparsity: float
    scope: str = "global"
    ranks: "Ranks" = field(default_factory=lazy("lth_scale.distributed.pieces:Ranks"))
    orientation: Orientation = Orientation()
    score: Score = MAGNITUDE


@dataclass(frozen=True)
class Pattern:
    """Which weights are pruned together.

    tile: (rows, columns) that must divide every matrix (outputs, inputs). prune: updates the masks
    of a step in place and returns the threshold, a score; raises as `threshold.prune`.
    least_sparsity: the sparsity at which every mask has the pattern; no search may end below it.
    default_sparsity: of `--target_sparsity`.
    """

    tile: tuple[int, int]
    prune: Callable[[PruningStep], float]
    least_sparsity: float = 0.0
    default_sparsity: float = 0.9


def unstructured(text: str) -> Pattern | None:
    """`unstructured`: single weights."""
    pattern = Pattern((1, 1), lazy("lth_scale.pruning.structured:prune_weights"))
    return pattern if text == "unstructured" else None


def n_of_m(text: str) -> Pattern | None:
    """`N:M` with 0 < N < M ≤ 64: at most N of each M consecutive inputs of an output are kept."""
    kept, of = _numbers(r"(\d{1,9}):(\d{1,9})", text)
    if not 0 < kept < of <= 64:
        return None
    prune = lazy("lth_scale.pruning.structured:prune_groups")
    return Pattern((1, of), partial(prune, kept=kept, of=of), 1 - kept / of, 1 - kept / of)


def blocks(text: str) -> Pattern | None:
    """`block:RxC`: blocks of R outputs by C inputs."""
    rows, columns = _numbers(r"block:(\d{1,9})x(\d{1,9})", text)
    prune = lazy("lth_scale.pruning.structured:prune_blocks")
    block = Pattern((rows, columns), partial(prune, rows=rows, columns=columns))
    return block if rows and columns else None


def _numbers(form: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(form, text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
