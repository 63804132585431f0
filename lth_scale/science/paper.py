"""The paper's numbers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lth_scale.science.results import CLOSE, THETA, percent


@cache
def paper() -> dict[str, Any]:
    """The numbers of Chen et al. 2020 with the source of each and how it was verified; units are percent points."""
    return json.loads(Path(__file__).with_name("paper.json").read_text())


def printed(task: str) -> dict[str, float]:
    """The paper's row of Table 2 (percent points), and its Table 4 as `strict`."""
    row = {name: column["value"][task] for name, column in paper()["table2"].items()}
    return row | {"strict": paper()["table4_strict_sparsity"][task]["value"]}


def figure2() -> dict[str, dict[str, Any]]:
    """The rows of the paper's Figure 2 by source."""
    rows = paper()["figure2_transfer_70pct_minus_full"]
    return {THETA if source == "one_shot" else source: row for source, row in rows.items()}


def sources(entries: Iterable[Mapping[str, Any]]) -> str:
    """Where the paper's numbers come from, and how they were verified."""
    known = dict.fromkeys(f"{entry['source']} (verified: {entry['verified']})" for entry in entries)
    return f"The paper's numbers: {'; '.join(known)}."


def at_paper(task: str, grid: Sequence[float]) -> tuple[float, str]:
    """The paper's sparsity of Table 2 if `grid` has it, else the next lower one, else the lowest; and in words."""
    theirs = printed(task)["sparsity"] / 100
    lower = [s for s in grid if s <= theirs + CLOSE]
    chosen = max(lower, default=min(grid))
    differs = (
        f" (the {'next lower' if lower else 'lowest'} compared)"
        if abs(chosen - theirs) > CLOSE
        else ""
    )
    return chosen, percent(chosen) + differs
