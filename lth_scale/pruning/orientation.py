"""How a rank's pieces make up whole matrices, outputs first."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Orientation:
    """whole: (name, piece) → the matrix (outputs, inputs), the same on every rank.

    cut: (name, matrix) → this rank's piece. By default the pieces are the matrices.
    """

    whole: "Callable[[str, Tensor], Tensor]" = lambda name, piece: piece
    cut: "Callable[[str, Tensor], Tensor]" = lambda name, matrix: matrix


def oriented(transposed: Collection[str], parameters: Orientation = Orientation()) -> Orientation:
    """The orientation of parameters that `parameters` gathers and cuts in their own shapes.

    transposed: the names of those stored as (inputs, outputs). Parameters of more dimensions are
    convolutions of width 1.
    """

    def whole(name: str, piece: "Tensor") -> "Tensor":
        parameter = parameters.whole(name, piece)
        return parameter.T.contiguous() if name in transposed else parameter.flatten(1)

    def cut(name: str, matrix: "Tensor") -> "Tensor":
        return parameters.cut(name, matrix.T.contiguous() if name in transposed else matrix)

    return Orientation(whole, cut)
