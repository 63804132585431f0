"""Rows: what a stage's metrics.json holds, and results.json lists."""

from typing import Any

Row = dict[str, Any]


def describe_starved(row: Row) -> str:
    """Describe the matrices that keep fewer weights than they have outputs; empty if none does."""
    kept = row.get("starved")
    if not isinstance(kept, dict) or not kept or {*map(type, kept.values())} != {int}:
        return ""
    worst = min(kept, key=kept.__getitem__)
    others = len(kept) - 1
    more = {0: "", 1: ", and so does 1 other matrix"}.get(
        others, f", and so do {others} other matrices"
    )
    return f"{worst} keeps {kept[worst]:,} weights, fewer than it has outputs{more}"
