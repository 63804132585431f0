"""Pictures of a search and of a study as PNG, legible in greyscale and to colour-blind readers."""

import functools
import importlib.util
import io
import logging
import math
import os
import statistics
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec
from unittest import mock

from lth_scale.config import caches, files
from lth_scale.config.texts import first_line, printable
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


log = logging.getLogger("lth_scale")
P = ParamSpec("P")
# Okabe & Ito's palette; line style and marker say the same again.
COLORS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2)), (0, (1, 1)), (0, (5, 5)))
STYLES = [*zip(COLORS, LINES, "osD^vPX", strict=True)]
SPARSITY = "sparsity of the prunable weights (%)"
WHITE_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}
Lines = Mapping[
    str, Mapping[Any, Sequence[float]]
]  # control → x, a number or a name → a score a seed


@dataclass(frozen=True)
class Grid:
    """A number and its text by row and column; NaN is missing, and what is absent was not planned: both are hatched."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], tuple[float, str]]


def drawn(picture: Callable[P, bytes]) -> Callable[P, bytes]:
    """A picture in Matplotlib's own style, whatever MPLBACKEND and matplotlibrc say.

    Where it cannot be drawn it is b"", and a warning says why: what it shows is in the tables too.
    """

    @functools.wraps(picture)
    def draw(*args: P.args, **kwargs: P.kwargs) -> bytes:
        try:
            caches.ensure_writable("MPLCONFIGDIR")
            # an import with a backend or a file that it does not know would fail
            with mock.patch.dict(os.environ, MPLBACKEND="agg", MATPLOTLIBRC=str(_defaults())):
                import matplotlib
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                return picture(*args, **kwargs)
        except Exception as problem:  # Matplotlib raises many kinds, and what it imports does
            log.warning("a picture is left out: it cannot be drawn (%s)", first_line(problem))
            return b""

    return draw


def _defaults() -> Path:
    """Matplotlib's own matplotlibrc."""
    found = importlib.util.find_spec("matplotlib")
    return Path(str(found and found.origin)).parent / "mpl-data/matplotlibrc"


def _panels(width: float, height: float, count: int = 1) -> "tuple[Figure, list[Any]]":
    """A figure of `count` axes of width × height inches each, at most three in a row."""
    from matplotlib.figure import Figure

    wide = min(3, count)
    rows = math.ceil(count / wide)
    figure = Figure(figsize=(wide * width, rows * height), dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, wide, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _plain(text: str) -> str:
    """A text as Matplotlib shows it: without formulas between dollars."""
    return printable(text).replace("$", r"\$")


def _titled(figure: "Figure", title: str) -> "Figure":
    """Write the title above, its lines no longer than the figure is wide."""
    letters = int(11 * figure.get_figwidth())
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, letters)]
    figure.suptitle(_plain("\n".join(lines)), fontsize=11)
    return figure


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _plot(ax: Any, lines: Lines, full: Sequence[float]) -> None:
    """Means, and bars from the least to the greatest seed; a band for `full`; hatched where the ticket is missing."""
    if full:
        ax.axhspan(min(full), max(full), color="0.88", zorder=0)
        ax.axhline(statistics.fmean(full), color="0.3", linewidth=1.2, label="full network")
    named = any(isinstance(x, str) for x in lines["none"])
    places = {x: i if named else x for points in lines.values() for i, x in enumerate(points)}
    if named:
        ax.set_xticks(list(places.values()), [*map(_plain, places)], fontsize=8, rotation=20)
    for x in (places[x] for x, scores in lines["none"].items() if not scores):
        width = 0.6 if named else 3
        ax.axvspan(
            x - width / 2,
            x + width / 2,
            facecolor="none",
            edgecolor="0.75",
            hatch="////",
            lw=0,
            zorder=0,
        )
        where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "center"}
        ax.text(x, 0.5, "missing", rotation=90, fontsize=7, bbox=WHITE_BOX, **where)
    for control, points in lines.items():
        color, line, marker = STYLES[[*CONTROLS].index(control) % len(STYLES)]
        known = [scores or [math.nan] for scores in points.values()]
        mean = [statistics.fmean(scores) for scores in known]
        down = [m - min(scores) for m, scores in zip(mean, known, strict=True)]
        up = [max(scores) - m for m, scores in zip(mean, known, strict=True)]
        label = CONTROLS[control].label if any(points.values()) else None
        style = {"color": color, "linestyle": line, "marker": marker, "label": label}
        ax.errorbar([places[x] for x in points], mean, [down, up], capsize=3, **style)


@drawn
def scores(panels: Mapping[str, tuple[Lines, Sequence[float]]], xlabel: str, title: str) -> bytes:
    """A panel a task, with a line a control and the full network's scores; what is missing is hatched."""
    figure, axes = _panels(6.0 if len(panels) == 1 else 4.4, 4.0, len(panels))
    known: dict[str, Any] = {}
    for ax, (name, (lines, full)) in zip(axes, panels.items(), strict=True):
        _plot(ax, lines, full)
        ax.set_title(_plain(name), fontsize=10)
        ax.set_xlabel(xlabel)
        known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(known.values()),
        list(known),
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=2,
    )
    return _png(_titled(figure, title))


@drawn
def sparsity_by_layer(layers: Mapping[str, float], title: str) -> bytes:
    """A bar for the sparsity of each matrix, in the order of the model."""
    figure, (ax,) = _panels(7.0, 0.8 + 0.2 * len(layers))
    names = [_plain(name.removesuffix(".weight")) for name in layers]
    ax.barh(names, [100 * value for value in layers.values()], color="#0072B2")
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlim=(0, 100), xlabel="pruned (%)", title=_plain(title))
    return _png(figure)


@drawn
def heat_maps(
    panels: Mapping[str, Grid],
    title: str,
    label: str = "",
    span: Sequence[float] = (),
    cmap: str = "cividis",
) -> bytes:
    """A heat map a panel on one scale: `span`, or from the least number to the greatest; `label`: its colour bar's."""
    rows, columns = (
        max(len(grid.rows) for grid in panels.values()),
        max(len(g.columns) for g in panels.values()),
    )
    width = max(1.2 + 0.6 * columns, 5.5 / min(3, len(panels)))
    figure, axes = _panels(width, 1.3 + 0.33 * rows, len(panels))
    numbers = [v for grid in panels.values() for v, _ in grid.cells.values() if not math.isnan(v)]
    low, high = span or (min(numbers, default=0.0), max(numbers, default=100.0))
    for ax, (name, grid) in zip(axes, panels.items(), strict=True):
        values = [
            [grid.cells.get((row, column), (math.nan,))[0] for column in grid.columns]
            for row in grid.rows
        ]
        ax.axhspan(
            -0.5, len(grid.rows) - 0.5, facecolor="white", edgecolor="0.7", hatch="////", zorder=-1
        )
        image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
        ax.set_title(_plain(name), fontsize=10)
        ax.set_xticks(
            range(len(grid.columns)),
            [*map(_plain, grid.columns)],
            rotation=35,
            ha="right",
            fontsize=8,
        )
        ax.set_yticks(range(len(grid.rows)), [*map(_plain, grid.rows)], fontsize=8)
        for (row, column), (value, text) in grid.cells.items():
            look = {
                "color": "white" if value < (low + high) / 2 else "black",
                "ha": "center",
                "va": "center",
            }
            box = WHITE_BOX if math.isnan(value) else None
            ax.text(
                grid.columns.index(column), grid.rows.index(row), text, fontsize=7, bbox=box, **look
            )
    if label:
        figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return _png(_titled(figure, title))


@drawn
def speed_ups(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    crossings: Mapping[tuple[str, str], float],
    sparse: Collection[str],
    title: str,
) -> bytes:
    """A panel a shape: engine → sparsity (%) → median and quartiles of × the best dense engine, with break-even at 1.

    crossings: (panel, engine) → the sparsity at which it breaks even. Engines that are not `sparse` are grey.
    """
    figure, axes = _panels(6.0 if len(panels) == 1 else 4.6, 4.2, len(panels))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    known: dict[str, Any] = {}
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        ax.axhline(1, color="0.3", linewidth=1.2, label="break-even: the best dense engine")
        for name, points in lines.items():
            i = [each for each in names if (each in sparse) == (name in sparse)].index(name) % len(
                COLORS
            )
            median = [found[0] for found in points.values()]
            spread = [[abs(found[0] - found[side]) for found in points.values()] for side in (1, 2)]
            style = (
                {"color": COLORS[i], "linewidth": 2}
                if name in sparse
                else {"color": "0.6", "linewidth": 0.8}
            )
            style |= {
                "linestyle": LINES[i],
                "marker": "osD^vPX"[i],
                "markersize": 5,
                "capsize": 3,
                "label": _plain(name),
            }
            ax.errorbar(list(points), median, spread, **style)
            if (panel, name) in crossings:
                x = crossings[panel, name]
                ax.axvline(x, color=style["color"], linewidth=0.8, linestyle=":")
                where = {
                    "transform": ax.get_xaxis_transform(),
                    "ha": "center",
                    "va": "bottom",
                    "bbox": WHITE_BOX,
                }
                ax.text(x, 0.02, f"{x:.0f} %", fontsize=7, **where)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_title(_plain(panel), fontsize=10)
        ax.set(xlabel=SPARSITY, ylabel="× the best dense engine")
        known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(known.values()),
        list(known),
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=3,
    )
    return _png(_titled(figure, title))


def draw(record: RunDirectory, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Draw a search's pictures into its directory; returns those that are there, by file name."""
    args = record.arguments
    rows = {"none": record.rows()}
    if record.control != "none":
        rows[record.control] = record.rows(f"controls/{record.control}")
    metric = next(iter(rows["none"][0]["eval"]))
    dense = [rows["none"][0]["eval"][metric]]
    lines = {
        control: {100 * row["sparsity"]: [row["eval"][metric]] for row in found}
        for control, found in rows.items()
    }
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    title += f"\n{args.note}" if args.note else ""
    pictures = {
        "score_against_sparsity.png": scores(
            {metric.replace("_", " "): (lines, dense)}, SPARSITY, title
        ),
        "sparsity_by_layer.png": sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    return {
        name: png
        for name, png in pictures.items()
        if png and _is_written(record.directory / "figures" / name, png)
    }


def _is_written(path: Path, png: bytes) -> bool:
    try:
        files.write_bytes(path, png)
    except OSError as problem:
        log.warning("%s is left out: it cannot be written (%s)", path, problem.strerror)
    return path.is_file()
