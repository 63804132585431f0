"""The units that are recorded: a round, a control, or a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One training that is recorded: a round of a search, a control at its sparsity, or a transfer with one seed.

    room: the directory of its kind; control: `none`, or what was not found about it. Round 0 is the dense network.
    """

    room: str
    number: int
    control: str = "none"

    @property
    def name(self) -> str:
        """`round 03`, `random_mask 03` or `seed 01`."""
        kind = (
            "seed" if self.room == "seeds" else "round" if self.control == "none" else self.control
        )
        return f"{kind} {self.number:02d}"


def a_round(number: int, control: str = "none") -> Stage:
    """A round of a search, or the control trained at that round's sparsity."""
    return Stage("rounds" if control == "none" else f"controls/{control}", number, control)


def starved_in(row: Mapping[str, Any]) -> str:
    """What a row says of matrices that keep fewer weights than they have outputs, in words; empty where none does."""
    kept = row.get("starved")
    if (
        not isinstance(kept, dict)
        or not kept
        or any(type(count) is not int for count in kept.values())
    ):
        return ""
    worst = min(kept, key=kept.__getitem__)
    others = {1: "", 2: ", and so does 1 other matrix"}.get(
        len(kept), f", and so do {len(kept) - 1} other matrices"
    )
    return f"{worst} keeps {kept[worst]:,} weights, fewer than it has outputs{others}"
