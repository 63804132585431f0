"""Figures as PNG, legible in greyscale and to colour-blind readers."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import drawing
from lth_scale.science.drawing import WHITE_BOX, Style, drawn, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's palette; line style and marker repeat the distinction. In the order of CONTROLS.
COLORS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2)), (0, (1, 1)), (0, (5, 5)))
MARKERS = "osD^vPX"
STYLES: list[Style] = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in zip(COLORS, LINES, MARKERS, strict=True)
]
SPARSITY = "sparsity of the prunable weights (%)"
# Control → x, a number or a name → the score of each seed.
Lines = Mapping[str, Mapping[Any, Sequence[float]]]
# Sparsity in percent → median and quartiles of a speed-up.
SpeedUps = Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Grid:
    """Numbers and their texts by row and column.

    NaN is missing, and an absent cell was not planned: both are hatched.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], tuple[float, str]]


@drawn
def scores(panels: Mapping[str, tuple[Lines, Sequence[float]]], xlabel: str, title: str) -> bytes:
    """A panel per task with a line per control; panels: name → lines, full network's scores."""
    figure, axes = drawing.panels(6.0 if len(panels) == 1 else 4.4, 4.0, len(panels))
    for ax, (name, (lines, full)) in zip(axes, panels.items(), strict=True):
        _draw_lines(ax, lines, full)
        ax.set_title(plain(name), fontsize=10)
        ax.set_xlabel(xlabel)
    drawing.add_legend(figure, axes, columns=2)
    drawing.set_title(figure, title)
    return drawing.png(figure)


def _draw_lines(ax: "Axes", lines: Lines, full: Sequence[float]) -> None:
    """Means with bars from the least to the greatest seed, over a band for the full network."""
    if full:
        ax.axhspan(min(full), max(full), color="0.88", zorder=0)
        ax.axhline(statistics.fmean(full), color="0.3", linewidth=1.2, label="full network")
    categorical = any(isinstance(x, str) for x in lines["none"])
    positions = {
        x: i if categorical else x for points in lines.values() for i, x in enumerate(points)
    }
    if categorical:
        labels = [plain(x) for x in positions]
        ax.set_xticks(list(positions.values()), labels, fontsize=8, rotation=20)
    for x, ticket_scores in lines["none"].items():
        if not ticket_scores:
            _hatch_missing(ax, positions[x], 0.6 if categorical else 3)
    for control, points in lines.items():
        _draw_line(ax, control, [positions[x] for x in points], list(points.values()))


def _hatch_missing(ax: "Axes", x: float, width: float) -> None:
    """Hatch the place of a missing ticket."""
    style: Style = {"facecolor": "none", "edgecolor": "0.75", "hatch": "////", "lw": 0}
    ax.axvspan(x - width / 2, x + width / 2, zorder=0, **style)
    where: Style = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "center"}
    ax.text(x, 0.5, "missing", rotation=90, fontsize=7, bbox=WHITE_BOX, **where)


def _draw_line(
    ax: "Axes", control: str, x: Sequence[float], points: Sequence[Sequence[float]]
) -> None:
    """The scores of one control; x without a score leaves a gap."""
    known = [values or [math.nan] for values in points]
    means = [statistics.fmean(values) for values in known]
    down = [mean - min(values) for mean, values in zip(means, known, strict=True)]
    up = [max(values) - mean for mean, values in zip(means, known, strict=True)]
    label = CONTROLS[control].label if any(points) else None
    style = STYLES[[*CONTROLS].index(control) % len(STYLES)]
    ax.errorbar(x, means, [down, up], capsize=3, label=label, **style)


@drawn
def sparsity_by_layer(layers: Mapping[str, float], title: str) -> bytes:
    """A bar for the sparsity of each matrix, in the order of the model."""
    figure, (ax,) = drawing.panels(7.0, 0.8 + 0.2 * len(layers))
    names = [plain(name.removesuffix(".weight")) for name in layers]
    ax.barh(names, [100 * sparsity for sparsity in layers.values()], color=COLORS[0])
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlim=(0, 100), xlabel="pruned (%)", title=plain(title))
    return drawing.png(figure)


@drawn
def heat_maps(
    panels: Mapping[str, Grid],
    title: str,
    label: str = "",
    span: Sequence[float] = (),
    cmap: str = "cividis",
) -> bytes:
    """A heat map per panel, all on one scale.

    label: of the colour bar, none if empty. span: the scale (default: least to greatest number).
    """
    rows = max(len(grid.rows) for grid in panels.values())
    columns = max(len(grid.columns) for grid in panels.values())
    width = max(1.2 + 0.6 * columns, 5.5 / min(drawing.MOST_COLUMNS, len(panels)))
    figure, axes = drawing.panels(width, 1.3 + 0.33 * rows, len(panels))
    numbers = [x for grid in panels.values() for x, _ in grid.cells.values() if not math.isnan(x)]
    low, high = span or (min(numbers, default=0.0), max(numbers, default=100.0))
    for ax, (name, grid) in zip(axes, panels.items(), strict=True):
        _draw_grid(ax, grid, low, high, cmap)
        ax.set_title(plain(name), fontsize=10)
    if label:
        figure.colorbar(axes[-1].images[0], ax=axes, label=label, shrink=0.8)
    drawing.set_title(figure, title)
    return drawing.png(figure)


def _draw_grid(ax: "Axes", grid: Grid, low: float, high: float, cmap: str) -> None:
    values = [
        [grid.cells.get((row, column), (math.nan,))[0] for column in grid.columns]
        for row in grid.rows
    ]
    hatched: Style = {"facecolor": "white", "edgecolor": "0.7", "hatch": "////", "zorder": -1}
    ax.axhspan(-0.5, len(grid.rows) - 0.5, **hatched)
    ax.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    columns, rows = ([*map(plain, names)] for names in (grid.columns, grid.rows))
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    for (row, column), (value, text) in grid.cells.items():
        color = "white" if value < (low + high) / 2 else "black"
        box = WHITE_BOX if math.isnan(value) else None
        style: Style = {"color": color, "ha": "center", "va": "center", "fontsize": 7, "bbox": box}
        ax.text(grid.columns.index(column), grid.rows.index(row), text, **style)


@drawn
def speed_ups(
    panels: Mapping[str, Mapping[str, SpeedUps]],
    crossings: Mapping[tuple[str, str], float],
    sparse: Collection[str],
    title: str,
) -> bytes:
    """A panel per shape with a line per engine, relative to the best dense engine.

    panels: shape → engine → speed-ups. crossings: (shape, engine) → the sparsity in percent at
    which the engine breaks even. sparse: the sparse engines; all others are grey.
    """
    figure, axes = drawing.panels(6.0 if len(panels) == 1 else 4.6, 4.2, len(panels))
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    coloured = [name for name in names if name in sparse]
    grey = [name for name in names if name not in sparse]
    styles = {name: STYLES[i % len(STYLES)] | {"linewidth": 2} for i, name in enumerate(coloured)}
    for i, name in enumerate(grey):
        styles[name] = STYLES[i % len(STYLES)] | {"color": "0.6", "linewidth": 0.8}
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        ax.axhline(1, color="0.3", linewidth=1.2, label="break-even: the best dense engine")
        for name, points in lines.items():
            _draw_speed_up(ax, points, styles[name] | {"label": plain(name)})
            if (panel, name) in crossings:
                _mark_crossing(ax, crossings[panel, name], styles[name]["color"])
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_title(plain(panel), fontsize=10)
        ax.set(xlabel=SPARSITY, ylabel="× the best dense engine")
    drawing.add_legend(figure, axes, columns=3)
    drawing.set_title(figure, title)
    return drawing.png(figure)


def _draw_speed_up(ax: "Axes", points: SpeedUps, style: Style) -> None:
    medians = [median for median, _, _ in points.values()]
    down = [abs(median - low) for median, low, _ in points.values()]
    up = [abs(median - high) for median, _, high in points.values()]
    ax.errorbar(list(points), medians, [down, up], markersize=5, capsize=3, **style)


def _mark_crossing(ax: "Axes", x: float, color: str) -> None:
    ax.axvline(x, color=color, linewidth=0.8, linestyle=":")
    where: Style = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    ax.text(x, 0.02, f"{x:.0f} %", fontsize=7, bbox=WHITE_BOX, **where)
