"""Patterns: which weights are pruned together. Imports no torch; `structured` does the work."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from lth_scale.config.registry import lazy
from lth_scale.pruning.orientation import Orientation
from lth_scale.pruning.scores import Score

if TYPE_CHECKING:
    from torch import Tensor

    from lth_scale.distributed.ranks import Ranks

_prune_weights = lazy("lth_scale.pruning.structured:prune_weights")
_prune_groups = lazy("lth_scale.pruning.structured:prune_groups")
_prune_blocks = lazy("lth_scale.pruning.structured:prune_blocks")


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
    scope: str
    ranks: "Ranks"
    orientation: Orientation
    score: Score


class Pattern(Protocol):
    """Which weights are pruned together."""

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, columns) that have to divide every matrix (outputs, inputs)."""

    @property
    def least_sparsity(self) -> float:
        """The sparsity at which every mask has the pattern; no search may end below it."""

    @property
    def default_sparsity(self) -> float:
        """The default of `--target_sparsity`."""

    def prune(self, step: PruningStep) -> float:
        """Update `step.keep` in place and return the threshold, a score."""


@dataclass(frozen=True)
class Unstructured:
    """Single weights."""

    tile = (1, 1)
    least_sparsity = 0.0
    default_sparsity = 0.9

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """`unstructured`."""
        return cls() if text == "unstructured" else None

    def prune(self, step: PruningStep) -> float:
        """Prune as `structured.prune_weights`."""
        return _prune_weights(step)


@dataclass(frozen=True)
class NofM:
    """At most `kept` of each `of` consecutive inputs of an output, such as 2:4."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """`N:M` with 0 < N < M ≤ 64."""
        kept, of = _numbers(r"(\d{1,9}):(\d{1,9})", text)
        return cls(kept, of) if 0 < kept < of <= 64 else None

    @property
    def tile(self) -> tuple[int, int]:
        """A group lies within a row."""
        return 1, self.of

    @property
    def least_sparsity(self) -> float:
        """The sparsity of N of M in every group, which is the default as well."""
        return 1 - self.kept / self.of

    default_sparsity = least_sparsity

    def prune(self, step: PruningStep) -> float:
        """Prune as `structured.prune_groups`."""
        return _prune_groups(step, self.kept, self.of)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` outputs by `columns` inputs, such as block:4x1."""

    rows: int
    columns: int
    least_sparsity = 0.0
    default_sparsity = 0.9

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """`block:RxC`."""
        rows, columns = _numbers(r"block:(\d{1,9})x(\d{1,9})", text)
        return cls(rows, columns) if rows and columns else None

    @property
    def tile(self) -> tuple[int, int]:
        """A block."""
        return self.rows, self.columns

    def prune(self, step: PruningStep) -> float:
        """Prune as `structured.prune_blocks`."""
        return _prune_blocks(step, self.rows, self.columns)


def _numbers(form: str, text: str) -> tuple[int, int]:
    """The two numbers in a pattern's text; zeros if it has another form."""
    match = re.fullmatch(form, text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
