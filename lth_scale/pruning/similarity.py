"""How alike two masks are: the share kept, the field's similarity, and its level by chance.

Imports no torch.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from lth_scale.pruning.positions import position

if TYPE_CHECKING:
    from torch import Tensor


def chance_similarity(sparsity: float, other: float) -> float:
    """The similarity |A∩B| ÷ |A∪B| of two independent random masks of these sparsities.

    With the kept fractions p and q it is pq ÷ (p + q − pq). NaN if neither keeps a weight.
    """
    p, q = 1 - sparsity, 1 - other
    return _ratio(p * q, p + q - p * q)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


class Shared(NamedTuple):
    """How many weights two masks A and B keep both, A keeps, B keeps, and either could keep."""

    both: int
    first: int
    second: int
    size: int

    @property
    def share(self) -> float:
        """|A∩B| ÷ |A|, the share of A's kept weights that B keeps too; NaN if A keeps none."""
        return _ratio(self.both, self.first)

    @property
    def similarity(self) -> float:
        """|A∩B| ÷ |A∪B|; NaN if neither keeps a weight."""
        return _ratio(self.both, self.first + self.second - self.both)

    @property
    def chance(self) -> float:
        """The similarity of independent random masks that keep as many weights as A and B."""
        return chance_similarity(1 - self.first / self.size, 1 - self.second / self.size)


def count(first: "Tensor", second: "Tensor") -> Shared:
    """The counts of two masks of one shape, bool, True keeps."""
    from numpy import count_nonzero  # ten times as fast as a sum of Torch's, for a large report

    a, b = first.numpy(), second.numpy()
    return Shared(int(count_nonzero(a & b)), int(count_nonzero(a)), int(count_nonzero(b)), a.size)


def total(parts: Iterable[Shared]) -> Shared:
    """The counts of several matrices together."""
    return Shared(*map(sum, zip(*parts, strict=True)))


def by_layer_and_kind(
    matrices: Mapping[str, Shared],
) -> tuple[dict[str, Shared], dict[str, Shared]]:
    """The counts of each layer, by its number, and of each kind of matrix, as in `position`."""
    layers, kinds = defaultdict(list), defaultdict(list)
    for name, shared in matrices.items():
        layer, kind = position(name)
        kinds[kind].append(shared)
        if layer:
            layers[layer].append(shared)
    return (
        {layer: total(parts) for layer, parts in layers.items()},
        {kind: total(parts) for kind, parts in kinds.items()},
    )
