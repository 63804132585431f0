"""What was measured and on which machine, as Markdown, JSON and a picture."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lth_scale.config import files, listing, markdown
from lth_scale.config.redaction import redacted
from lth_scale.science import figures, pages
from lth_scale.shipping.speed.engines import BACKENDS
from lth_scale.shipping.speed.measure import Spread
from lth_scale.shipping.speed.names import FILES
from lth_scale.tracking.machine import machine

HEADER = (
    "backend",
    "ms, median [quartiles]",
    "CPU ms",
    "× eager",
    "× best dense [quartiles]",
    "verdict",
    "accuracy",
    "logit difference",
)
READING = (
    "A ratio above 1 is that many times as fast. Ratios are medians and quartiles over sweeps, in each of which every "
    "engine is called once. The verdict is against the fastest dense engine of any precision: faster where both "
    "quartiles are above 1, slower where the median is below 1. CPU time is that of all threads. The logit difference "
    "is the largest of any output, relative to the largest output of the dense fp32 network with the same zeros."
)
# (an instruction set, what another machine changes where this one has it, and where it has not)
ELSEWHERE = (
    (
        "amx_tile",
        "This CPU has AMX, which dense bf16 and int8 use: without it sparse kernels break even earlier.",
        "With AMX (Xeon from Sapphire Rapids on) dense bf16 and int8 are several times faster, so the sparsity at which a "
        "sparse kernel breaks even moves up.",
    ),
    (
        "avx512f",
        "Without AVX-512 vectors are half as wide, for dense and sparse kernels alike.",
        "This CPU has no AVX-512: with it vectors are twice as wide, for dense and sparse kernels alike.",
    ),
    (
        "avx512_vnni",
        "Without VNNI int8 is two to four times slower.",
        "With VNNI int8 is two to four times faster.",
    ),
    (
        "",
        "",
        "On a GPU unstructured sparsity below about 93 % gives no speed-up, because tensor cores multiply dense "
        "matrices; 2:4 may, in large batches.",
    ),
    (
        "",
        "",
        "The ratios are of this machine, these versions and these shapes; run the check where the network runs.",
    ),
)


def write(output: Path, cells: list[dict], notes: list[str], settings: dict[str, Any]) -> None:
    """speed.md, speed.json and speed.png in `output`. notes: lines that go above the tables."""
    here = machine()
    changes = [has if name in here["instructions"] else lacks for name, has, lacks in ELSEWHERE]
    png, evens = break_evens(cells, here["cpu"])
    parts = [
        here["cpu"],
        here["cores"],
        ", ".join(here["instructions"]),
        here["gpu"] or "no GPU",
        here["system"],
    ]
    versions = ", ".join(" ".join(item) for item in here["versions"].items())
    sections = [
        markdown.Section("Machine", ["; ".join(parts) + ".", versions + ".", *changes]),
        markdown.Section("How to read this", [READING, *notes]),
        *map(section, cells),
        markdown.Section(
            "Break-even",
            evens,
            pictures={"speed.png": ("Speed-up over the best dense engine, against sparsity", png)},
        ),
    ]
    record = {
        "machine": here,
        "elsewhere": changes,
        "settings": redacted(settings),
        "notes": notes,
        "cells": cells,
    }
    text = pages.markdown("Speed check", "", sections)
    contents = zip(FILES, (text.encode(), files.as_json(record), png), strict=True)
    listing.write_listed(output, {name: content for name, content in contents if content})


def break_evens(cells: list[dict], cpu: str) -> tuple[bytes, list[str]]:
    """Speed-ups against sparsity as PNG, or b"", and a line for each sparse engine and shape."""
    panels, sparse = (
        _speed_ups(cells),
        {name for name, row in cells[0]["rows"].items() if row["sparse"]},
    )
    points = {
        (panel, name): found
        for panel, lines in panels.items()
        for name, found in lines.items()
        if name in sparse
    }
    crossings = {key: found for key, each in points.items() if (found := break_even(each))}
    png = figures.speed_ups(panels, crossings, sparse, cpu)
    return png, [_even(*key, each, crossings.get(key)) for key, each in points.items()]


def _shape(cell: Mapping[str, Any]) -> str:
    return "batch {batch_size} × {sequence_length} tokens, threads: {threads}".format(**cell)


def section(cell: Mapping[str, Any]) -> markdown.Section:
    """A table sorted by speed; what is the best dense engine, and how sparse ones compare at their own precision."""
    rows, best = cell["rows"], cell["best"]
    order = sorted(rows, key=lambda name: rows[name].get("ms", [float("inf")])[0])
    text = ["Best dense here: " + ", ".join(f"{name} ({key})" for key, name in best.items()) + "."]
    dense = [
        name
        for name, each in BACKENDS.items()
        if not each.sparse and cell["device"] in each.devices
    ]
    if unknown := [name for name in dense if "ms" not in rows.get(name, {})]:
        text.append(f"Not measured, and perhaps faster than that: {', '.join(unknown)}.")
    for name in order:
        if rows[name]["sparse"] and "times_same" in rows[name]:
            row, other = rows[name], best[rows[name]["precision"]]
            said = f"{_interval(row['times_same'])} × {other}, the best dense {row['precision']}"
            text.append(f"{name} is {said}: {row['verdict_same']}.")
    title = f"{cell['target']}, {100 * cell['sparsity']:.4g} % sparse: {_shape(cell)}"
    return markdown.Section(
        title,
        text,
        [markdown.Table("By speed", HEADER, [_line(name, rows[name]) for name in order])],
    )


def _line(name: str, row: Mapping[str, Any]) -> list[str]:
    if "ms" not in row:
        return [name, *["—"] * 4, f"{row['status']}: {row['why']}", "—", "—"]
    scored = f"failed: {row['accuracy_failed']}" if "accuracy_failed" in row else "—"
    for metric, value in [*row.get("accuracy", {}).items()][:1]:
        scored = f"{value:.4f} ({metric})"
    eager = _number(row["times_eager"][0]) if "times_eager" in row else "—"
    ratio = (
        [_interval(row["times_best"]), row["verdict_best"]] if "times_best" in row else ["—", "—"]
    )
    apart = f"{row['difference']:.1e}" if row.get("difference") is not None else "—"
    return [name, _interval(row["ms"]), _number(row["cpu_ms"][0]), eager, *ratio, scored, apart]


def _number(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _interval(found: Sequence[float]) -> str:
    return "{} [{}, {}]".format(*map(_number, found))


def _speed_ups(cells: list[dict]) -> dict[str, dict[str, dict[float, Spread]]]:
    """Shape → engine → sparsity in percent, rising → × the best dense engine."""
    found: dict[str, dict[str, dict[float, Spread]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["sparsity"]):
        lines = found.setdefault(_shape(cell), {})
        for name, row in cell["rows"].items():
            if "times_best" in row:
                lines.setdefault(name, {})[100 * cell["sparsity"]] = row["times_best"]
    return found


def break_even(points: Mapping[float, Spread]) -> float | None:
    """The sparsity in percent above which the median stays above 1, on lines between what was measured; else None."""
    pairs = [
        *itertools.pairwise((sparsity, found[0]) for sparsity, found in sorted(points.items()))
    ]
    low = [i for i, ((_, first), (_, second)) in enumerate(pairs) if first <= 1 < second]
    if not low or pairs[-1][1][1] <= 1:
        return None
    (x, first), (z, second) = pairs[low[-1]]
    return x + (1 - first) / (second - first) * (z - x)


def _even(panel: str, name: str, points: Mapping[float, Spread], crossing: float | None) -> str:
    if crossing:
        return f"{name}, {panel}: breaks even with the best dense at about {crossing:.0f} %."
    said = ", ".join(
        f"{_number(found[0])} at {sparsity:.4g} %" for sparsity, found in points.items()
    )
    return (
        f"{name}, {panel}: no break-even between the sparsities measured; × best dense is {said}."
    )


def metrics(cells: list[dict]) -> dict[str, float]:
    """Numbers for MLflow: milliseconds, ratios, difference and scores of each engine in each cell."""
    found: dict[str, float] = {}
    for cell in cells:
        where = f"{Path(cell['target']).name} {100 * cell['sparsity']:.4g}/{_shape(cell)}"
        for name, row in cell["rows"].items():
            values = {
                key: row[key][0]
                for key in ("ms", "cpu_ms", "times_eager", "times_best")
                if key in row
            }
            values |= {key: row[key] for key in ("difference",) if key in row} | row.get(
                "accuracy", {}
            )
            found |= {
                re.sub(r"[^\w./ -]", "-", f"{where}/{name}/{key}", flags=re.A): x
                for key, x in values.items()
            }
    return found
