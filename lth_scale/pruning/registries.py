"""What the flags of pruning may name, one line an entry. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lth_scale.config.registry import Registry, lazy
from lth_scale.pruning.schedules import SCHEDULES

if TYPE_CHECKING:
    from lth_scale.pruning.controls import Start

__all__ = ["CONTROLS", "SCHEDULES", "Control"]


@dataclass(frozen=True)
class Control:
    """A subnetwork of the same sparsity without the finding.

    label: what figures and tables call it. make: (start, seed) → the start of its training.
    needs_ticket: it takes the mask of a ticket; else a sparsity is enough. of_base: it trains the
    weights of the base model.
    """

    label: str
    make: Callable[["Start", int], "Start"]
    needs_ticket: bool = True
    of_base: bool = True


CONTROLS: Registry[Control] = Registry("control")


def _add(name: str, label: str, **facts: bool) -> None:
    CONTROLS.register(name, Control(label, lazy(f"lth_scale.pruning.controls:{name}"), **facts))


_add("none", "IMP ticket")
_add("random_mask", "random mask", needs_ticket=False)
_add("random_layerwise", "random mask, the ticket's sparsity by matrix", needs_ticket=False)
_add("reinit", "ticket on θ₀′ (re-initialised)", of_base=False)
_add("shuffle_layers", "ticket on θ₀″ (layers shuffled)", of_base=False)
_add("shuffle_within", "ticket on θ₀″ (shuffled within matrices)", of_base=False)
_add("one_shot", "θ₀ pruned in one shot", needs_ticket=False)
