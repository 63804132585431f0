"""The report of a speed check: Markdown, JSON and a picture."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lth_scale.config import files, manifest
from lth_scale.config.markdown import Section, Table
from lth_scale.config.redaction import redacted
from lth_scale.science import figures, pages
from lth_scale.shipping.speed.flags import FILES
from lth_scale.shipping.speed.registry import BACKENDS
from lth_scale.shipping.speed.timing import Row, Spread
from lth_scale.tracking.machine import machine

HEADER = (
    *("backend", "ms, median [quartiles]", "CPU ms", "× eager", "× best dense [quartiles]"),
    *("verdict", "accuracy", "logit difference"),
)
READING = (
    "A ratio above 1 is that many times as fast. Ratios are medians and quartiles over sweeps, in "
    "which each backend is called once. The verdict is against the fastest dense backend of any "
    "precision: faster where both quartiles are above 1, slower where the median is below 1. CPU "
    "time is that of all threads. The logit difference is the largest of any output, relative to "
    "the largest output of the dense fp32 network with the same zeros."
)
# (an instruction set, what changes on a machine without it, and on one with it)
ELSEWHERE = (
    (
        "amx_tile",
        "This CPU has AMX, which dense bf16 and int8 use: "
        "without it sparse kernels break even earlier.",
        "With AMX (Xeon from Sapphire Rapids on) dense bf16 and int8 are several times faster, "
        "so the sparsity at which a sparse kernel breaks even moves up.",
    ),
    (
        "avx512f",
        "Without AVX-512 vectors are half as wide, for dense and sparse kernels alike.",
        "This CPU has no AVX-512: with it vectors are twice as wide, "
        "for dense and sparse kernels alike.",
    ),
    (
        "avx512_vnni",
        "Without VNNI int8 is two to four times slower.",
        "With VNNI int8 is two to four times faster.",
    ),
)
ANYWHERE = (
    "On a GPU unstructured sparsity below about 93 % gives no speed-up, because tensor cores "
    "multiply dense matrices; 2:4 may, in large batches.",
    "The ratios are of this machine, these versions and these shapes; "
    "run the check where the network runs.",
)


def write(output: Path, cells: list[Row], notes: list[str], settings: dict[str, Any]) -> None:
    """Write speed.md, speed.json and speed.png. notes: lines above the tables."""
    here = machine()
    changes = [has if name in here["instructions"] else lacks for name, has, lacks in ELSEWHERE]
    changes += ANYWHERE
    gpu, instructions = here["gpu"] or "no GPU", ", ".join(here["instructions"])
    hardware = "; ".join([here["cpu"], here["cores"], instructions, gpu, here["system"]])
    versions = ", ".join(" ".join(item) for item in here["versions"].items())
    picture, crossings = break_evens(cells, here["cpu"])
    caption = "Speed-up over the best dense backend, against sparsity: medians and quartiles"
    sections = [
        Section("Machine", [f"{hardware}.", f"{versions}.", *changes]),
        Section("How to read this", [READING, *notes]),
        *map(section, cells),
        Section("Break-even", crossings, pictures={"speed.png": (caption, picture)}),
    ]
    page = pages.markdown("Speed check", "", sections)
    record = {"machine": here, "elsewhere": changes, "settings": redacted(settings)}
    record |= {"notes": notes, "cells": cells}
    contents = zip(FILES, (page.encode(), files.as_json(record), picture.png), strict=True)
    manifest.write_listed(output, {name: content for name, content in contents if content})


def break_evens(cells: list[Row], cpu: str) -> tuple[figures.Picture, list[str]]:
    """Return speed-ups against sparsity, and a line for each sparse backend and shape."""
    # shape → backend → sparsity in percent, increasing → × the best dense backend
    panels: dict[str, dict[str, dict[float, Spread]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["sparsity"]):
        lines = panels.setdefault(_shape(cell), {})
        for name, row in cell["rows"].items():
            if "times_best" in row:
                lines.setdefault(name, {})[100 * cell["sparsity"]] = row["times_best"]
    sparse = {name for name, row in cells[0]["rows"].items() if row["sparse"]}
    curves = {
        (shape, name): curve
        for shape, lines in panels.items()
        for name, curve in lines.items()
        if name in sparse
    }
    crossings = {key: sparsity for key, curve in curves.items() if (sparsity := break_even(curve))}
    picture = figures.speed_ups(panels, crossings, sparse, cpu)
    return picture, [_crossing(*key, curve, crossings.get(key)) for key, curve in curves.items()]


def break_even(curve: Mapping[float, Spread]) -> float | None:
    """Return the sparsity in percent above which the median speed-up stays above 1, or None.

    It is interpolated linearly between measured sparsities.
    """
    pairs = [*pairwise((sparsity, times[0]) for sparsity, times in sorted(curve.items()))]
    rises = [pair for pair in pairs if pair[0][1] <= 1 < pair[1][1]]
    if not rises or pairs[-1][1][1] <= 1:
        return None
    (low, slower), (high, faster) = rises[-1]
    return low + (1 - slower) / (faster - slower) * (high - low)


def _crossing(shape: str, name: str, curve: Mapping[float, Spread], even: float | None) -> str:
    if even:
        return f"{name}, {shape}: breaks even with the best dense at about {even:.0f} %."
    points = [f"{_number(times[0])} at {sparsity:.4g} %" for sparsity, times in curve.items()]
    why = f"no break-even between the sparsities measured; × best dense is {', '.join(points)}."
    return f"{name}, {shape}: {why}"


def _shape(cell: Row) -> str:
    return "batch {batch_size} × {sequence_length} tokens, threads: {threads}".format(**cell)


def section(cell: Row) -> Section:
    """Return a table sorted by speed, and comparisons at the same precision."""
    rows, best = cell["rows"], cell["best"]
    order = sorted(rows, key=lambda name: rows[name].get("ms", [float("inf")])[0])
    text = [f"Best dense here: {', '.join(f'{name} ({key})' for key, name in best.items())}."]
    missing = [
        name
        for name, spec in BACKENDS.items()
        if not spec.sparse and cell["device"] in spec.devices and "ms" not in rows.get(name, {})
    ]
    if missing:
        text.append(f"Not measured, and perhaps faster than that: {', '.join(missing)}.")
    for name in order:
        row, precision = rows[name], rows[name]["precision"]
        if row["sparse"] and "times_same" in row:
            dense = f"{best[precision]}, the best dense {precision}"
            times = _interval(row["times_same"])
            text.append(f"{name} is {times} × {dense}: {row['verdict_same']}.")
    title = f"{cell['target']}, {100 * cell['sparsity']:.4g} % sparse: {_shape(cell)}"
    table = Table("By speed", HEADER, [_table_row(name, rows[name]) for name in order])
    return Section(title, text, [table])


def _table_row(name: str, row: Row) -> list[str]:
    if "ms" not in row:
        return [name, *["—"] * 4, f"{row['status']}: {row['why']}", "—", "—"]
    times = [_interval(row["ms"]), _number(row["cpu_ms"][0])]
    times += [_number(row["times_eager"][0]) if "times_eager" in row else "—"]
    best = [_interval(row["times_best"]), row["verdict_best"]] if "times_best" in row else ["—"] * 2
    accuracy = f"failed: {row['accuracy_failed']}" if "accuracy_failed" in row else "—"
    if "accuracy" in row:
        accuracy = "{1:.4f} ({0})".format(*next(iter(row["accuracy"].items())))
    difference = f"{row['difference']:.1e}" if row.get("difference") is not None else "—"
    return [name, *times, *best, accuracy, difference]


def _number(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _interval(values: Sequence[float]) -> str:
    return "{} [{}, {}]".format(*map(_number, values))


def metrics(cells: list[Row]) -> dict[str, float]:
    """Return numbers for MLflow: times, ratios, difference and scores of each backend."""
    logged = dict[str, float]()
    for cell in cells:
        prefix = f"{Path(cell['target']).name} {100 * cell['sparsity']:.4g}/{_shape(cell)}"
        for name, row in cell["rows"].items():
            spreads = ("ms", "cpu_ms", "times_eager", "times_best")
            values = {key: row[key][0] for key in spreads if key in row}
            values |= {"difference": row["difference"]} if "difference" in row else {}
            for key, value in (values | row.get("accuracy", {})).items():
                logged[re.sub(r"[^\w./ -]", "-", f"{prefix}/{name}/{key}", flags=re.A)] = value
    return logged
