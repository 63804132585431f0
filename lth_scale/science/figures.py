"""Figures as PNG in Matplotlib's default style, legible in greyscale and without colour vision."""

import functools
import io
import logging
import math
import statistics
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from lth_scale.config import files, startup
from lth_scale.config.markdown import Table
from lth_scale.config.texts import first_line, printable
from lth_scale.distributed import compat
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import sparsity_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("lth_scale")
P = ParamSpec("P")
Style = dict[str, Any]  # keyword arguments of Matplotlib
# Okabe & Ito's palette; line style and marker repeat the distinction. In the order of CONTROLS.
COLORS: tuple[str, ...] = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
COLORS += ("#000000", "#666666", "#8C510A")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2)), (0, (1, 1)), (0, (5, 5)))
LINES += ((0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
STYLES: list[Style] = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in zip(COLORS, LINES, "osD^vPX*p", strict=True)
]
HATCHED: Style = {"facecolor": "none", "edgecolor": "0.7", "hatch": "////"}
WHITE_BOX: Style = {"facecolor": "white", "edgecolor": "none", "pad": 1}
DPI = 150
MOST_COLUMNS = 3
SPARSITY = "sparsity of the prunable weights (%)"
# Control → x, a number or a name → the score of each seed.
Lines = Mapping[str, Mapping[Any, Sequence[float]]]
# Sparsity in percent → median and quartiles of a speed-up.
SpeedUps = Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Grid:
    """Numbers and their texts by row and column; NaN and absent cells are hatched."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], tuple[float, str]]

    def table(self, title: str) -> Table:
        """The texts as a table; `—` for absent cells."""
        rows = [
            [row, *(self.cells.get((row, column), (0, "—"))[1] for column in self.columns)]
            for row in self.rows
        ]
        return Table(title, ["", *self.columns], rows)


def drawn(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Decorate a function that draws: MPLBACKEND and matplotlibrc have no effect.

    If it fails, it returns b"" after a warning: the tables have the same content.
    """

    @functools.wraps(draw)
    def draw_in_default_style(*args: P.args, **kwargs: P.kwargs) -> bytes:
        try:
            startup.ensure_writable("MPLCONFIGDIR")
            compat.import_matplotlib()
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                return draw(*args, **kwargs)
        except Exception as problem:  # Matplotlib and its dependencies raise many kinds
            log.warning("a figure is omitted because drawing it failed (%s)", first_line(problem))
            return b""

    return draw_in_default_style


def png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


@drawn
def scores(
    panels: Mapping[str, tuple[Lines, Sequence[float]]],
    xlabel: str,
    title: str,
    trivial: Mapping[str, float] | None = None,
) -> bytes:
    """A panel per task with a line per control; panels: name → lines, full network's scores.

    trivial: the score of the best trivial predictor by panel, drawn as a dotted line.
    """
    figure, axes = _subplots(6.0 if len(panels) == 1 else 4.4, 4.0, [*panels], title)
    for ax, (name, (lines, full)) in zip(axes, panels.items(), strict=True):
        _draw_lines(ax, lines, full)
        if trivial and name in trivial:
            ax.axhline(trivial[name], color="0.3", ls=":", lw=1, label="best trivial predictor")
        ax.set_xlabel(xlabel)
    _add_legend(figure, axes, columns=2)
    return png(figure)


@drawn
def sparsity_by_layer(layers: Mapping[str, float], title: str) -> bytes:
    """A bar for the sparsity of each matrix, in the order of the model."""
    figure, (ax,) = _subplots(7.0, 0.8 + 0.2 * len(layers), [""])
    names = [_plain(name.removesuffix(".weight")) for name in layers]
    ax.barh(names, [100 * sparsity for sparsity in layers.values()], color=COLORS[0])
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlim=(0, 100), xlabel="pruned (%)")
    ax.set_title(_plain(title), fontsize="large")
    return png(figure)


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
    width = max(1.2 + 0.6 * columns, 5.5 / min(MOST_COLUMNS, len(panels)))
    figure, axes = _subplots(width, 1.3 + 0.33 * rows, [*panels], title)
    numbers = [x for grid in panels.values() for x, _ in grid.cells.values() if not math.isnan(x)]
    low, high = span or (min(numbers, default=0.0), max(numbers, default=100.0))
    for ax, grid in zip(axes, panels.values(), strict=True):
        _draw_grid(ax, grid, low, high, cmap)
    if label:
        figure.colorbar(axes[-1].images[0], ax=axes, label=label, shrink=0.8)
    return png(figure)


@drawn
def speed_ups(
    panels: Mapping[str, Mapping[str, SpeedUps]],
    crossings: Mapping[tuple[str, str], float],
    sparse: Collection[str],
    title: str,
) -> bytes:
    """A panel per shape with a line per backend, relative to the best dense backend.

    panels: shape → engine → speed-ups. crossings: (shape, engine) → the sparsity in percent at
    which the engine breaks even. sparse: the sparse engines; all others are grey.
    """
    figure, axes = _subplots(6.0 if len(panels) == 1 else 4.6, 4.2, [*panels], title)
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    coloured, grey = {"linewidth": 2}, {"color": "0.6", "linewidth": 0.8}
    styles = {
        name: STYLES[i % len(STYLES)] | extra
        for extra, is_sparse in ((coloured, True), (grey, False))
        for i, name in enumerate(name for name in names if (name in sparse) == is_sparse)
    }
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        ax.axhline(1, color="0.3", linewidth=1.2, label="break-even: the best dense backend")
        for name, points in lines.items():
            medians = [median for median, _, _ in points.values()]
            spans = [[abs(y[0] - y[i]) for y in points.values()] for i in (1, 2)]
            style: Style = {"label": _plain(name), "markersize": 5, "capsize": 3, **styles[name]}
            ax.errorbar(list(points), medians, spans, **style)
            if x := crossings.get((panel, name)):
                ax.axvline(x, color=styles[name]["color"], linewidth=0.8, linestyle=":")
                _write(ax, x, 0.02, f"{x:.0f} %", va="bottom")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set(xlabel=SPARSITY, ylabel="× the best dense backend")
    _add_legend(figure, axes, columns=3)
    return png(figure)


def draw_search(record: RunDirectory, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Write a search's figures into its directory and return those that exist, by file name.

    layers: sparsity of each matrix of the last ticket.
    """
    args = record.arguments
    rows = {"none": record.round_rows()}
    if record.control != "none":
        rows[record.control] = record.control_rows()
    metric, dense = next(iter(rows["none"][0]["eval"].items()))
    lines = {
        control: {100 * sparsity_beside(row): [row["eval"][metric]] for row in results}
        for control, results in rows.items()
    }
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    title += f"\n{args.note}" if args.note else ""
    pictures = {
        "score_against_sparsity.png": scores(
            {metric.replace("_", " "): (lines, [dense])}, SPARSITY, title
        ),
        "sparsity_by_layer.png": sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    return {
        name: picture
        for name, picture in pictures.items()
        if picture and _save(record.directory / "figures" / name, picture)
    }


def _save(path: Path, content: bytes) -> bool:
    try:
        files.write_bytes(path, content)
    except OSError as problem:
        log.warning("%s is omitted: it cannot be written (%s)", path, problem.strerror)
    return path.is_file()


def _subplots(
    width: float, height: float, names: Sequence[str], title: str = ""
) -> "tuple[Figure, list[Axes]]":
    """A titled figure with axes of width × height inches, at most MOST_COLUMNS in a row."""
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((columns * width, rows * height), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for unused in axes[len(names) :]:
        unused.set_axis_off()
    for ax, name in zip(axes, names, strict=False):
        ax.set_title(_plain(name), fontsize=10)
    if title:
        letters = int(11 * figure.get_figwidth())
        lines = [part for line in title.splitlines() for part in textwrap.wrap(line, letters)]
        figure.suptitle(_plain("\n".join(lines)), fontsize=11)
    return figure, axes[: len(names)]


def _plain(text: str) -> str:
    """A text that Matplotlib shows literally, without formulas between dollars."""
    return printable(text).replace("$", r"\$")


def _add_legend(figure: "Figure", axes: "list[Axes]", columns: int) -> None:
    """Add one legend below all axes, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        lines, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    style: Style = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend(list(handles.values()), list(handles), ncols=columns, **style)


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
        labels = [_plain(x) for x in positions]
        ax.set_xticks(list(positions.values()), labels, fontsize=8, rotation=20)
    margin = 0.3 if categorical else 1.5
    for x in (positions[x] for x, values in lines["none"].items() if not values):
        ax.axvspan(x - margin, x + margin, zorder=0, **HATCHED, lw=0)
        _write(ax, x, 0.5, "missing", va="center", rotation=90)
    for control, points in lines.items():
        known = [values or [math.nan] for values in points.values()]  # NaN leaves a gap
        means = [statistics.fmean(values) for values in known]
        down = [mean - min(values) for mean, values in zip(means, known, strict=True)]
        up = [max(values) - mean for mean, values in zip(means, known, strict=True)]
        label = CONTROLS[control].label if any(points.values()) else None
        style = STYLES[[*CONTROLS].index(control) % len(STYLES)]
        x = [positions[x] for x in points]
        ax.errorbar(x, means, [down, up], capsize=3, label=label, **style)


def _write(ax: "Axes", x: float, y: float, text: str, **style: Any) -> None:
    """Write into a white box; y: as a fraction of the height."""
    place = ax.get_xaxis_transform()
    ax.text(x, y, text, transform=place, ha="center", fontsize=7, bbox=WHITE_BOX, **style)


def _draw_grid(ax: "Axes", grid: Grid, low: float, high: float, cmap: str) -> None:
    values = [
        [grid.cells.get((row, column), (math.nan,))[0] for column in grid.columns]
        for row in grid.rows
    ]
    ax.axhspan(-0.5, len(grid.rows) - 0.5, zorder=-1, **HATCHED)
    ax.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    columns, rows = ([*map(_plain, names)] for names in (grid.columns, grid.rows))
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    for (row, column), (value, text) in grid.cells.items():
        color = "white" if value < (low + high) / 2 else "black"
        style: Style = {"color": color, "ha": "center", "va": "center", "fontsize": 7}
        box = WHITE_BOX if math.isnan(value) else None
        ax.text(grid.columns.index(column), grid.rows.index(row), text, bbox=box, **style)
