"""The numbers of the paper (Chen et al. 2020, arXiv:2007.12223)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lth_scale.science.results import CLOSE
from lth_scale.science.texts import percent

PRUNED_THETA0 = "θ₀ pruned"  # the row of Figure 2 for one-shot pruning of θ₀


class Column(NamedTuple):
    """A column of Table 2: its heading, and its key in paper.json, empty if the paper has none."""

    heading: str
    key: str = ""


# Table 2 by control.
TABLE2: Mapping[str, Column] = {
    "random_mask": Column("f(m_RP, θ₀)", "f(m_RP,theta0)"),
    "reinit": Column("f(m_IMP, θ₀′)", "f(m_IMP,theta0')"),
    "shuffle_layers": Column(
        "f(m_IMP, θ₀″), layers shuffled, as the paper's code", "f(m_IMP,theta0'')"
    ),
    "shuffle_within": Column("f(m_IMP, θ₀″), shuffled within, as its text"),
}


@cache
def paper() -> dict[str, Any]:
    """The paper's numbers in percent points, each with its source and how it was verified."""
    return json.loads(Path(__file__).with_name("paper.json").read_text())


def printed(task: str) -> dict[str, float]:
    """The task's row of Table 2 in percent points, and its sparsity in Table 4 as `strict`."""
    row = {name: column["value"][task] for name, column in paper()["table2"].items()}
    return row | {"strict": paper()["table4_strict_sparsity"][task]["value"]}


def figure2() -> dict[str, dict[str, Any]]:
    """The rows of Figure 2 by source."""
    rows = paper()["figure2_transfer_70pct_minus_full"]
    return {PRUNED_THETA0 if source == "one_shot" else source: row for source, row in rows.items()}


def sources(entries: Iterable[Mapping[str, Any]]) -> str:
    """Where numbers of the paper come from and how they were verified, as a sentence."""
    known = dict.fromkeys(f"{entry['source']} (verified: {entry['verified']})" for entry in entries)
    return f"The paper's numbers: {'; '.join(known)}."


def closest_to_table2(task: str, sparsities: Sequence[float]) -> tuple[float, str]:
    """The task's sparsity in Table 2, or else the next lower one, or else the lowest; with a text.

    sparsities: those to choose from, as fractions.
    """
    target = printed(task)["sparsity"] / 100
    lower = [sparsity for sparsity in sparsities if sparsity <= target + CLOSE]
    chosen = max(lower, default=min(sparsities))
    if abs(chosen - target) <= CLOSE:
        return chosen, percent(chosen)
    return chosen, f"{percent(chosen)} (the {'next lower' if lower else 'lowest'} compared)"
