"""The numbers of the paper (Chen et al. 2020, arXiv:2007.12223)."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lth_scale.science.results import CLOSE, percent

PAPER = "Chen et al. 2020"
VERIFIED = {
    "image": "read from the image",
    "code": "read from the code",
    "web": "read from a web page",
    "arithmetic": "computed from other numbers",
    "False": "from memory, not verified",
}
UNIVERSAL = 70  # percent: the sparsity of the paper's universal tickets
PRUNED_THETA0 = "θ₀ pruned"  # the row of Figure 2 for one-shot pruning of θ₀


@cache
def paper() -> dict[str, Any]:
    """The paper's numbers in percentage points, each with its source and how it was verified."""
    return json.loads(Path(__file__).with_name("paper.json").read_text())


def printed(task: str) -> dict[str, float]:
    """The task's row of Table 2, in percentage points, and its sparsity in Table 4 as `strict`.

    Empty for a task that the paper does not have.
    """
    if task not in paper()["table4_strict_sparsity"]:
        return {}
    row = {name: column["value"][task] for name, column in paper()["table2"].items()}
    return row | {"strict": paper()["table4_strict_sparsity"][task]["value"]}


def figure2() -> dict[str, dict[str, Any]]:
    """The rows of Figure 2 by source."""
    rows = paper()["figure2_transfer_70pct_minus_full"]
    return {PRUNED_THETA0 if source == "one_shot" else source: row for source, row in rows.items()}


def sources(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the paper's numbers come from and how they were verified, a sentence each."""
    known = dict.fromkeys((entry["source"], str(entry["verified"])) for entry in entries)
    return [f"{PAPER}: {_readable(source)} ({_verified(how)})." for source, how in known]


def _verified(how: str) -> str:
    """How a number was verified, with the remark in parentheses that may follow."""
    kind, _, remark = how.partition(" (")
    text = VERIFIED.get(kind, kind)
    return f"{text}; {remark.removesuffix(')')}" if remark else text


def _readable(source: str) -> str:
    """`github:OWNER/NAME@COMMIT:FILE (what)` as `what, FILE in OWNER/NAME at COMMIT`."""
    return re.sub(
        r"github:([^@]+)@(\w{7})\w*:(\S+)(?: \((.+?)\))?",
        lambda m: f"{m[4] + ', ' if m[4] else ''}{m[3]} in {m[1]} at {m[2]}",
        source,
    )


def closest_to_table2(task: str, sparsities: Sequence[float]) -> tuple[float, str]:
    """The task's sparsity in Table 2 if available, else the next lower or the lowest; and as text.

    That of UNIVERSAL for a task that the paper does not have. sparsities: the available ones, as
    fractions.
    """
    row = printed(task)
    target = row.get("sparsity", UNIVERSAL) / 100
    lower = [sparsity for sparsity in sparsities if sparsity <= target + CLOSE]
    chosen = max(lower, default=min(sparsities))
    if not row or abs(chosen - target) <= CLOSE:
        return chosen, percent(chosen)
    return chosen, f"{percent(chosen)} ({'next lower' if lower else 'lowest'} available)"
