"""Figures in Matplotlib's default style, legible in greyscale and without colour vision."""

import functools
import io
import logging
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lth_scale.config import files, startup
from lth_scale.config.markdown import Table
from lth_scale.config.texts import first_line, printable
from lth_scale.distributed import compat
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import best_trivial, metric_named
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Row, recorded_trivial, sparsity_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

log = logging.getLogger("lth_scale")
P = ParamSpec("P")
Drawn = TypeVar("Drawn")
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
CROSSED: Style = {"facecolor": "white", "edgecolor": "0.5", "hatch": "xxxx"}
WHITE_BOX: Style = {"facecolor": "white", "edgecolor": "none", "pad": 1}
# PDF with TrueType fonts, which publishers ask for; SVG with the same identifiers every time.
SETTINGS: Any = {"pdf.fonttype": 42, "svg.hashsalt": "lth_scale"}
DATES = {"png": (), "svg": ("Date",), "pdf": ("CreationDate",)}
DPI = 150
MOST_COLUMNS = 3
SPARSITY = "sparsity of the prunable weights (%)"
# Control → x, a number or a name → the score of each seed.
Lines = Mapping[str, Mapping[Any, Sequence[float]]]
# Sparsity in percent → median and quartiles of a speed-up.
SpeedUps = Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, SVG and PDF: rendered at the first use, always to the same bytes.

    They are empty, after a warning, if drawing fails: the tables have the same content.
    """

    figure: "Figure | None"

    @functools.cached_property
    def png(self) -> bytes:
        """The figure as PNG at DPI, as pages show it."""
        return self._rendered("png")

    @functools.cached_property
    def svg(self) -> bytes:
        """The figure as SVG, its letters as outlines."""
        return self._rendered("svg")

    @functools.cached_property
    def pdf(self) -> bytes:
        """The figure as PDF with embedded TrueType fonts."""
        return self._rendered("pdf")

    def files(self, name: str) -> dict[str, bytes]:
        """All three by file name, without those that are empty; name: of the PNG."""
        contents = {".png": self.png, ".svg": self.svg, ".pdf": self.pdf}
        return {str(Path(name).with_suffix(end)): x for end, x in contents.items() if x}

    def _rendered(self, format: str) -> bytes:
        return (self.figure and _in_default_style(render, self.figure, format)) or b""


def render(figure: "Figure", format: str) -> bytes:
    """The figure as `png`, `svg` or `pdf`."""
    from matplotlib.backend_bases import get_registered_canvas_class

    buffer, figure.dpi = io.BytesIO(), DPI  # canvases of vectors change it
    canvas: Any = get_registered_canvas_class(format)(figure)  # savefig would draw twice
    getattr(canvas, f"print_{format}")(buffer, metadata=dict.fromkeys(DATES[format]))
    return buffer.getvalue()


def drawn(draw: "Callable[P, Figure]") -> Callable[P, Picture]:
    """Decorate a function that draws: MPLBACKEND and matplotlibrc have no effect.

    If it fails, its picture is empty after a warning.
    """

    @functools.wraps(draw)
    def draw_in_default_style(*args: P.args, **kwargs: P.kwargs) -> Picture:
        return Picture(_in_default_style(lambda: _arranged(draw(*args, **kwargs))))

    return draw_in_default_style


def _arranged(figure: "Figure") -> "Figure":
    """Place everything once, so that it lies at the same places in all formats."""
    engine = figure.get_layout_engine()
    assert engine
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def _in_default_style(draw: Callable[P, Drawn], *args: P.args, **kwargs: P.kwargs) -> Drawn | None:
    """Call `draw`; None after a warning if it fails."""
    try:
        startup.ensure_writable("MPLCONFIGDIR")
        compat.import_matplotlib()
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(SETTINGS)
            return draw(*args, **kwargs)
    except Exception as problem:  # Matplotlib and its dependencies raise many kinds
        log.warning("a figure is omitted because drawing it failed (%s)", first_line(problem))
        return None


@dataclass(frozen=True)
class Panel:
    """The scores of one task, in the unit printed (`Metric.scale`).

    lines: scores by seed of each control at each x. full: of the full network, by seed. metric:
    the name of their metric. trivial: the score of the best trivial predictor, if known.
    """

    lines: Lines
    full: Sequence[float]
    metric: str
    trivial: float | None = None


@dataclass(frozen=True)
class Grid:
    """Numbers and their texts by row and column.

    NaN is hatched as missing, and an absent cell stays blank. row_name, column_name: what the rows
    and the columns are. hatched: cells whose networks get no verdict; they have no colour.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], tuple[float, str]]
    row_name: str = ""
    column_name: str = ""
    hatched: Collection[tuple[str, str]] = ()

    def table(self, title: str) -> Table:
        """The texts as a table; `—` for absent cells."""
        rows = [
            [row, *(self.cells.get((row, column), (0, "—"))[1] for column in self.columns)]
            for row in self.rows
        ]
        return Table(title, ["", *self.columns], rows)

    def values(self) -> list[list[float]]:
        """The numbers that have a colour, by row; NaN for all other cells."""
        return [
            [
                math.nan
                if (row, column) in self.hatched
                else self.cells.get((row, column), NONE)[0]
                for column in self.columns
            ]
            for row in self.rows
        ]


NONE = (math.nan, "—")  # an absent cell of a grid


@drawn
def scores(panels: Mapping[str, Panel], xlabel: str, title: str) -> "Figure":
    """A panel per task with a line per control: means, and bars of one standard deviation.

    The full network is a line and a band of one standard deviation. Panels share the axis of
    sparsities, and in those of the same metric a difference has the same height.
    """
    names = [f"{name} ({_count_text(panel)})".strip() for name, panel in panels.items()]
    figure, axes = _subplots(6.0 if len(panels) == 1 else 4.4, 4.0, names, title)
    for ax, panel in zip(axes, panels.values(), strict=True):
        if not _is_categorical(panel.lines):
            _join(axes[0], ax, "x")
        _draw_panel(ax, panel)
        ax.set_xlabel(xlabel, fontsize=9)
    for metric in {panel.metric for panel in panels.values()}:
        pairs = zip(axes, panels.values(), strict=True)
        _equalise([ax for ax, panel in pairs if panel.metric == metric], metric_named(metric).sign)
    _add_legend(figure, axes, columns=2)
    return figure


@drawn
def sparsity_by_layer(layers: Mapping[str, float], title: str) -> "Figure":
    """A bar for the sparsity of each matrix, in the order of the model."""
    figure, (ax,) = _subplots(7.0, 0.8 + 0.2 * len(layers), [""])
    names = [_plain(name.removesuffix(".weight")) for name in layers]
    ax.barh(names, [100 * sparsity for sparsity in layers.values()], color=COLORS[0])
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlim=(0, 100), xlabel="pruned weights (%)", ylabel="matrix")
    ax.set_title(_plain(title), fontsize="large")
    return figure


@drawn
def heat_maps(
    panels: Mapping[str, Grid],
    title: str,
    label: str = "",
    span: Sequence[float] = (),
    shades: Mapping[float, str] | None = None,
) -> "Figure":
    """A heat map per panel, all on one scale.

    label: of the colour bar, with the unit. span: its ends (default: without outliers); arrows
    show that numbers lie beyond. shades: what each of two numbers means, instead of a colour bar.
    """
    rows = max(len(grid.rows) for grid in panels.values())
    columns = max(len(grid.columns) for grid in panels.values())
    width = max(1.2 + 0.6 * columns, 5.5 / min(MOST_COLUMNS, len(panels)))
    figure, axes = _subplots(width, 1.5 + 0.33 * rows, [*panels], title)
    values = [x for grid in panels.values() for row in grid.values() for x in row]
    numbers = [x for x in values if not math.isnan(x)]
    low, high = sorted(shades or span or whiskers(numbers))
    style: Style = {"vmin": low, "vmax": high, "cmap": "Blues_r" if shades else "cividis"}
    for ax, grid in zip(axes, panels.values(), strict=True):
        _draw_grid(ax, grid, style)
    image = axes[0].images[0]
    if not shades:
        ends = (min(numbers, default=low) < low) + 2 * (max(numbers, default=high) > high)
        extend = ("neither", "min", "max", "both")[ends]
        figure.colorbar(image, ax=axes, label=label, shrink=0.8, extend=extend)
    colors = {meaning: _color(image, x) for x, meaning in (shades or {}).items()}
    _add_key(figure, panels.values(), colors)
    return figure


def whiskers(numbers: Sequence[float]) -> tuple[float, float]:
    """The ends of a box plot's whiskers: the range without outliers; 0 and 100 if empty.

    An outlier is further from the quartiles than 1.5 times their distance (Tukey 1977).
    """
    import numpy

    if not numbers:
        return 0.0, 100.0
    low, high = numpy.quantile(numbers, [0.25, 0.75])
    reach = 1.5 * (high - low)
    inside = [x for x in numbers if low - reach <= x <= high + reach]
    return min(inside), max(inside)


@drawn
def speed_ups(
    panels: Mapping[str, Mapping[str, SpeedUps]],
    crossings: Mapping[tuple[str, str], float],
    sparse: Collection[str],
    title: str,
) -> "Figure":
    """A panel per shape with a line per backend: medians and quartiles, on the same axes.

    panels: shape → engine → speed-ups over the best dense backend. crossings: (shape, engine) → the
    sparsity in percent at which the engine breaks even. sparse: the sparse engines; all others are
    grey.
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
        _join(axes[0], ax, "xy")
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
        ax.set(xlabel=SPARSITY, ylabel="× the best dense backend, median and quartiles")
    _add_legend(figure, axes, columns=3)
    return figure


def draw_search(record: RunDirectory, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Write a search's figures into its directory and return those that exist, as PNG by name.

    layers: sparsity of each matrix of the last ticket.
    """
    args = record.arguments
    rows = {"none": record.round_rows()}
    if record.control != "none":
        rows[record.control] = record.control_rows()
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    title += f"\n{args.note}" if args.note else ""
    pictures = {
        "score_against_sparsity.png": scores({"": panel_of(rows)}, SPARSITY, title),
        "sparsity_by_layer.png": sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    return {
        name: picture.png
        for name, picture in pictures.items()
        if picture.png and _save(record.directory / "figures" / name, picture.png)
    }


def panel_of(rows: Mapping[str, Sequence[Row]]) -> Panel:
    """The panel of one run: the rows of its stages by control, with the dense network's scores."""
    everything = [row for stages in rows.values() for row in stages]
    metric = next(iter(everything[0]["eval"]))
    scale = metric_named(metric).scale
    lines: dict[str, dict[float, list[float]]] = {"none": {}}
    for control, stages in rows.items():
        points = lines.setdefault(control, {})
        for row in stages:
            points.setdefault(100 * sparsity_beside(row), []).append(scale * row["eval"][metric])
    best = best_trivial(recorded_trivial(everything), metric)
    return Panel(lines, lines["none"].get(0.0, []), metric, best and best[1])


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
    _place_legend(figure, [*handles.values()], [*handles], columns)


def _place_legend(
    figure: "Figure", handles: Sequence[Any], labels: Sequence[str], columns: int
) -> None:
    if handles:
        style: Style = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        figure.legend(handles, labels, ncols=columns, **style)


def count_text(counts: Iterable[int]) -> str:
    """`n = 3` or `n = 2–3`: how many values the means of a figure have; those of 0 are missing."""
    known = [count for count in counts if count] or [0]
    return "n = " + "–".join(map(str, sorted({min(known), max(known)})))


def _count_text(panel: Panel) -> str:
    samples = [panel.full, *(values for line in panel.lines.values() for values in line.values())]
    return count_text(map(len, samples))


def _equalise(axes: "Sequence[Axes]", sign: int) -> None:
    """Let a difference of scores have the same height in all axes.

    They are extended on the worse side: the full network is near the better one.
    """
    limits = [ax.get_ylim() for ax in axes]
    height = max(high - low for low, high in limits)
    for ax, (low, high) in zip(axes, limits, strict=True):
        ax.set_ylim(*((high - height, high) if sign > 0 else (low, low + height)))


def _join(first: "Axes", ax: "Axes", directions: str) -> None:
    for direction in directions if ax is not first else "":
        getattr(ax, f"share{direction}")(first)


def _is_categorical(lines: Lines) -> bool:
    return any(isinstance(x, str) for x in lines["none"])


def _draw_panel(ax: "Axes", panel: Panel) -> None:
    _draw_references(ax, panel)
    positions = _positions(ax, panel.lines)
    offsets = _offsets(panel.lines, positions)
    margin = 0.3 if _is_categorical(panel.lines) else 1.5
    for x in (positions[x] for x, values in panel.lines["none"].items() if not values):
        ax.axvspan(x - margin, x + margin, zorder=0, **HATCHED, lw=0)
        _write(ax, x, 0.5, "missing", va="center", rotation=90)
    for control, points in panel.lines.items():
        places = [positions[x] + offsets[control] for x in points]
        _draw_line(ax, places, [*points.values()], control)
    ax.set_ylabel(_score_label(panel), fontsize=9)


def _score_label(panel: Panel) -> str:
    """`accuracy (%), mean ± sd`."""
    metric, has_sd = metric_named(panel.metric), _count_text(panel) != "n = 1"
    name = panel.metric.replace("_", " ") + " (%)" * (metric.scale == 100)
    name += ", less is better" if metric.sign < 0 else ""
    return _plain(name + ", mean ± sd" * has_sd)


def _draw_references(ax: "Axes", panel: Panel) -> None:
    """The full network and the best trivial predictor."""
    from lth_scale.science.matching import summary  # imports scipy

    full = summary(panel.full)
    if full.n > 1:
        low, high = full.mean - full.sd, full.mean + full.sd
        ax.axhspan(low, high, color="0.88", zorder=0, label="full network ± sd")
    if full.n:
        ax.axhline(full.mean, color="0.3", linewidth=1.2, label="full network")
    if panel.trivial is not None:
        ax.axhline(panel.trivial, color="0.3", ls=":", lw=1, label="best trivial predictor")


def _positions(ax: "Axes", lines: Lines) -> dict[Any, float]:
    """The place of each x: itself, or for names 0, 1, … with the names as ticks."""
    if not _is_categorical(lines):
        return {x: x for points in lines.values() for x in points}
    positions: dict[Any, float] = {x: i for points in lines.values() for i, x in enumerate(points)}
    labels = [_plain(x) for x in positions]
    ax.set_xticks(list(positions.values()), labels, fontsize=8, rotation=20)
    return positions


def _offsets(lines: Lines, positions: Mapping[Any, float]) -> dict[str, float]:
    """How far each control is drawn beside its sparsity, so that none covers another.

    The tickets themselves are in the middle.
    """
    width = max(positions.values(), default=0) - min(positions.values(), default=0)
    places = {positions[x] for control in lines if control != "none" for x in lines[control]}
    gaps = [b - a for a, b in pairwise(sorted(places))]
    unit = min([0.025 * (width or 1), *(0.8 * gap / len(lines) for gap in gaps)])
    steps = (k // 2 * (-1) ** k for k in count(2))
    return {control: 0.0 if control == "none" else -unit * next(steps) for control in lines}


def _draw_line(
    ax: "Axes", x: Sequence[float], samples: Sequence[Sequence[float]], control: str
) -> None:
    label = CONTROLS[control].label if any(samples) else None
    _draw_samples(ax, x, samples, label, STYLES[[*CONTROLS].index(control) % len(STYLES)])


def _draw_samples(
    ax: "Axes",
    x: Sequence[float],
    samples: Sequence[Sequence[float]],
    label: str | None,
    style: Style,
) -> None:
    """Means with bars of one standard deviation; a gap where there is no score."""
    from lth_scale.science.matching import summary  # imports scipy

    points = [summary(values) for values in samples]
    style = {"capsize": 3, "markersize": 4.5, "label": label, **style}
    ax.errorbar(x, [point.mean for point in points], [p.sd for p in points], **style)


def _write(ax: "Axes", x: float, y: float, text: str, **style: Any) -> None:
    """Write into a white box; y: as a fraction of the height."""
    place = ax.get_xaxis_transform()
    ax.text(x, y, text, transform=place, ha="center", fontsize=7, bbox=WHITE_BOX, **style)


def _draw_grid(ax: "Axes", grid: Grid, style: Style) -> None:
    """The cells with their texts; style: of the colours."""
    image = ax.imshow(grid.values(), aspect="auto", **style)
    columns, rows = ([*map(_plain, names)] for names in (grid.columns, grid.rows))
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set(xlabel=grid.column_name, ylabel=grid.row_name)
    for (row, column), (value, text) in grid.cells.items():
        x, y = grid.columns.index(column), grid.rows.index(row)
        color, box = _text_color(_color(image, value)), None
        if hatch := _hatch(grid, (row, column)):
            color, box = "black", WHITE_BOX
            ax.add_patch(_box(x - 0.5, y - 0.5, hatch))
        ax.text(x, y, text, color=color, ha="center", va="center", fontsize=7, bbox=box)


def _color(image: Any, value: float) -> tuple[float, ...]:
    """The colour of a number in an image, as RGBA from 0 to 1."""
    return tuple(image.cmap(image.norm(value)))


def _hatch(grid: Grid, cell: tuple[str, str]) -> Style | None:
    """How a cell is hatched; None if it has a colour or is absent."""
    if math.isnan(grid.cells.get(cell, (0.0,))[0]):
        return HATCHED
    return CROSSED if cell in grid.hatched else None


def _box(x: float, y: float, style: Style) -> "Patch":
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, linewidth=0.5, **style)


def _text_color(background: Sequence[float]) -> str:
    """Black or white, by the luminance of a colour (ITU-R BT.709)."""
    red, green, blue = background[:3]
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"


def _add_key(figure: "Figure", grids: Iterable[Grid], colors: Mapping[str, Any]) -> None:
    """Add a legend below of the hatches that occur, and of the meanings of colours."""
    hatches = [_hatch(grid, cell) for grid in grids for cell in grid.cells]
    styles = {
        meaning: {"facecolor": color, "edgecolor": "0.5"} for meaning, color in colors.items()
    }
    styles |= {"missing": HATCHED} if HATCHED in hatches else {}
    styles |= {"no verdict: dead or untrained": CROSSED} if CROSSED in hatches else {}
    _place_legend(figure, [_box(0, 0, style) for style in styles.values()], [*styles], columns=2)


@drawn
def starting_weights(panels: Mapping[str, Panel], title: str) -> "Figure":
    """A panel per target: the weights that training starts from, with the sources side by side.

    The lines of a panel are by source. Means, and bars of one standard deviation.
    """
    names = [f"{name} ({_count_text(panel)})" for name, panel in panels.items()]
    figure, axes = _subplots(6.0 if len(panels) == 1 else 4.4, 4.0, names, title)
    sources = [*dict.fromkeys(source for panel in panels.values() for source in panel.lines)]
    for ax, panel in zip(axes, panels.values(), strict=True):
        _draw_references(ax, panel)
        weights = [*dict.fromkeys(x for points in panel.lines.values() for x in points)]
        for i, source in enumerate(sources):
            shift = 0.6 * ((i + 0.5) / len(sources) - 0.5)
            points = panel.lines.get(source, {})
            positions = [weights.index(name) + shift for name in points]
            style = STYLES[i % len(STYLES)] | {"linestyle": "none"}
            _draw_samples(ax, positions, [*points.values()], f"ticket of {source}", style)
        ax.set_xticks(range(len(weights)), map(_plain, weights), fontsize=8, rotation=20)
        ax.set(xlabel="weights under the ticket", xlim=(-0.6, len(weights) - 0.4))
        ax.set_ylabel(_score_label(panel), fontsize=9)
    _add_legend(figure, axes, columns=2)
    return figure


@dataclass(frozen=True)
class Scatter:
    """Named points (x, y) by group, and the label of the y axis."""

    groups: Mapping[str, Mapping[str, tuple[float, float]]]
    ylabel: str


@drawn
def scatters(panels: Mapping[str, Scatter], xlabel: str, title: str) -> "Figure":
    """A panel per scatter over a logarithmic x axis, with a colour and marker for each group."""
    figure, axes = _subplots(4.8, 3.8, [*panels], title)
    names = [*dict.fromkeys(name for panel in panels.values() for name in panel.groups)]
    for ax, panel in zip(axes, panels.values(), strict=True):
        for group, points in panel.groups.items():
            style = STYLES[names.index(group) % len(STYLES)] | {"linestyle": "none"}
            x, y = zip(*points.values(), strict=True)
            ax.plot(x, y, label=_plain(group), **style)
        _write_names(ax, panel)
        ax.set_xscale("log")
        ax.set(xlabel=xlabel, ylabel=panel.ylabel)
        ax.margins(x=0.15, y=0.2)
    _add_legend(figure, axes, columns=3)
    return figure


def _write_names(ax: "Axes", panel: Scatter) -> None:
    """Write each point's name obliquely, above and below in turn: neighbours stay legible."""
    points = {name: place for group in panel.groups.values() for name, place in group.items()}
    for i, name in enumerate(sorted(points, key=points.__getitem__)):
        side, va = (1, "bottom") if i % 2 == 0 else (-1, "top")
        style: Style = {"textcoords": "offset points", "rotation": 40 * side, "va": va}
        ax.annotate(_plain(name), points[name], (4, 4 * side), fontsize=7, **style)
