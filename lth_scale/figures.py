"""Pictures of a search, legible in greyscale and to colour-blind readers."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lth_scale import files
from lth_scale.record import Record

# Okabe & Ito's palette; line style and marker say the same again.
STYLES: dict[str, tuple[str, Any, str]] = {
    "none": ("#0072B2", "-", "o"),
    "random_mask": ("#D55E00", "--", "s"),
    "random_layerwise": ("#E69F00", "-.", "D"),
    "reinit": ("#009E73", ":", "^"),
    "shuffle_layers": ("#CC79A7", (0, (6, 2, 1, 2)), "v"),
    "shuffle_within": ("#56B4E9", (0, (1, 1)), "P"),
    "one_shot": ("#000000", (0, (5, 5)), "X"),
}
LABELS = {
    "none": "IMP ticket",
    "random_mask": "random mask",
    "random_layerwise": "random mask, the ticket's sparsity by matrix",
    "reinit": "ticket on θ₀′ (re-initialised)",
    "shuffle_layers": "ticket on θ₀″ (layers shuffled)",
    "shuffle_within": "ticket on θ₀″ (shuffled within matrices)",
    "one_shot": "θ₀ pruned in one shot",
}
DARK, LIGHT = "#084594", "#EFEFEF"  # far apart in greyscale too


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(count: int, wide: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure of `count` axes of width × height inches each, at most `wide` in a row."""
    wide = min(wide, count)
    rows = math.ceil(count / wide)
    figure = Figure(figsize=(wide * width, rows * height + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, wide, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def score_against_sparsity(rows: Mapping[str, list[dict[str, Any]]], metric: str, title: str) -> bytes:
    """PNG: the metric of every round against its sparsity, a line for the search and one for each control."""
    figure, axes = _canvas(6.4, 4.0)
    dense = rows["none"][0]
    axes.axhline(dense["eval"][metric], color="0.6", linewidth=1, zorder=0)
    axes.annotate(
        "round 0", (1, dense["eval"][metric]), xycoords=("axes fraction", "data"), color="0.4", ha="right", va="bottom"
    )
    for control, points in rows.items():
        color, line, marker = STYLES[control]
        x, y = [100 * row["sparsity"] for row in points], [row["eval"][metric] for row in points]
        axes.plot(x, y, color=color, linestyle=line, marker=marker, label=LABELS[control])
    axes.set(xlabel="sparsity of the prunable weights (%)", ylabel=metric.replace("_", " "), title=title)
    axes.legend(frameon=False)
    return _png(figure)


def sparsity_by_layer(layers: Mapping[str, float], title: str) -> bytes:
    """PNG: a bar for the sparsity of each matrix, in the order of the model."""
    figure, axes = _canvas(7.0, 0.8 + 0.2 * len(layers))
    names = [name.removesuffix(".weight") for name in layers]
    axes.barh(names, [100 * value for value in layers.values()], color="#0072B2")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlim=(0, 100), xlabel="pruned (%)", title=title)
    return _png(figure)


def _seeds(axes: Any, x: Sequence[float], scores: Sequence[Sequence[float]], control: str, **options: Any) -> None:
    """The mean over seeds, with bars from the least to the greatest; the line breaks where there is no score."""
    color, line, marker = STYLES[control]
    known = [values or [math.nan] for values in scores]
    mean = [statistics.fmean(values) for values in known]
    down = [m - min(values) for m, values in zip(mean, known, strict=True)]
    up = [max(values) - m for m, values in zip(mean, known, strict=True)]
    axes.errorbar(x, mean, [down, up], color=color, linestyle=line, marker=marker, capsize=3, **options)


def _hatch(axes: Any, x: float, width: float) -> None:
    axes.axvspan(x - width / 2, x + width / 2, facecolor="none", edgecolor="0.75", hatch="////", linewidth=0, zorder=0)
    axes.text(x, 0.5, "missing", transform=axes.get_xaxis_transform(), rotation=90, ha="center", va="center",
              fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def _full(axes: Any, scores: Sequence[float], **options: Any) -> None:
    """The full network: its mean as a line, the range of its seeds as a band."""
    if scores:
        axes.axhspan(min(scores), max(scores), color="0.88", zorder=0)
        axes.axhline(statistics.fmean(scores), color="0.3", linewidth=1.2, **options)


def scores_over_seeds(
    lines: Mapping[str, Mapping[float, Sequence[float]]], full: Sequence[float], metric: str, title: str
) -> bytes:
    """PNG: score (points) against sparsity (%), a line a control: mean, and bars from the least to the greatest seed.

    `lines` is control → sparsity → a score a seed, none where it is missing; `full` the full network's scores.
    """
    figure, axes = _canvas(6.0, 5.0)
    _full(axes, full, label=f"full network (n = {len(full)})")
    for x, scores in lines["none"].items():
        if not scores:
            _hatch(axes, x, 3)
    for control, points in lines.items():
        if any(points.values()):
            _seeds(axes, list(points), list(points.values()), control, label=LABELS[control])
    axes.set(xlabel="sparsity of the prunable weights (%)", ylabel=f"{metric.replace('_', ' ')} (points)", title=title)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return _png(figure)


def transfer_matrix(
    cells: Sequence[Sequence[str | None]],
    dark: Sequence[Sequence[bool]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> bytes:
    """PNG: a text for each source (row) and target (column); None is hatched as missing, "" was not planned.

    A dark cell is filled, framed and bold; the cell of a task's own ticket has a dashed frame.
    """
    figure, axes = _canvas(2.2 + 0.78 * len(columns), 1.5 + 0.42 * len(rows))
    for i, row in enumerate(cells):
        for j, text in enumerate(row):
            _transfer_cell(axes, j, i, text, dark[i][j], own=rows[i] == columns[j])
    axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(len(rows) - 0.45, -0.55), title=title)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="target: the task trained", ylabel="source: whose ticket")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def _transfer_cell(axes: Any, x: int, y: int, text: str | None, dark: bool, own: bool) -> None:
    face = DARK if dark else LIGHT if text else "white"
    edge, width, style = ("black", 2.0, "-") if dark else ("black", 1.2, (0, (3, 2))) if own else ("0.8", 0.6, "-")
    hatch = "/////" if text is None else None
    if text is None:
        edge = "0.6"
    axes.add_patch(
        Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=face, edgecolor=edge, linewidth=width, linestyle=style,
                  hatch=hatch, zorder=2 if dark or own else 1)
    )  # fmt: skip
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1} if text is None else None
    axes.text(x, y, "missing" if text is None else text, ha="center", va="center", bbox=box, zorder=3,
              fontsize=7 if text is None else 8.5, color="white" if dark else "black",
              fontweight="bold" if dark else "normal")  # fmt: skip


Panel = tuple[Sequence[str], Sequence[str], Sequence[Sequence[float]]]


def heat_maps(panels: Mapping[str, Panel], label: str, title: str, span: tuple[float, float] | None = None) -> bytes:
    """PNG: a heat map a panel: names of rows and of columns, and numbers in percent, of which NaN is hatched.

    All have one scale: `span`, or from the least number to the greatest.
    """
    rows, columns = (max(len(panel[i]) for panel in panels.values()) for i in (0, 1))
    figure, axes = _panels(len(panels), 3, max(1.2 + 0.55 * columns, 5.5 / min(3, len(panels))), 1.1 + 0.33 * rows)
    numbers = [v for *_, values in panels.values() for row in values for v in row if not math.isnan(v)]
    low, high = span or (min(numbers, default=0.0), max(numbers, default=100.0))
    image: Any = None
    for ax, (name, (down, across, values)) in zip(axes, panels.items(), strict=True):
        ax.axhspan(-0.5, len(down) - 0.5, facecolor="white", edgecolor="0.7", hatch="////", zorder=-1)
        image = ax.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        ax.set_title(name, fontsize=10)
        ax.set_xticks(range(len(across)), across, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(down)), down, fontsize=8)
        for i, row in enumerate(values):
            for j, v in enumerate(row):
                ink = "white" if v < (low + high) / 2 else "black"
                ax.text(j, i, "" if math.isnan(v) else f"{v:.1f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def rewinding(
    panels: Mapping[str, Mapping[str, Sequence[float]]], full: Mapping[str, Sequence[float]], title: str
) -> bytes:
    """PNG: a panel a task: its scores (points) at each rewind point in order; one without scores is missing."""
    figure, axes = _panels(len(panels), 3, 3.4, 2.7)
    for ax, (task, points) in zip(axes, panels.items(), strict=True):
        _full(ax, full[task])
        for x, scores in enumerate(points.values()):
            if not scores:
                _hatch(ax, x, 0.6)
        _seeds(ax, range(len(points)), list(points.values()), "none")
        ax.set_xticks(range(len(points)), points, fontsize=8, rotation=20)
        ax.set_xlim(-0.5, len(points) - 0.5)
        ax.set_title(task, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supylabel("score (points)")
    figure.supxlabel("rewind point (grey: the full network, mean and range)", fontsize=9)
    figure.suptitle(title)
    return _png(figure)


def draw(record: Record, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Draw a search's pictures into its directory; returns them by file name."""
    args = record.arguments
    rows = {"none": record.rows()}
    if record.control != "none":
        rows[record.control] = record.rows(f"controls/{record.control}")
    metric = next(iter(rows["none"][0]["eval"]))
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    title += f"\n{args.note}" if args.note else ""
    pictures = {
        "score_against_sparsity.png": score_against_sparsity(rows, metric, title),
        "sparsity_by_layer.png": sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    for name, png in pictures.items():
        files.write_bytes(record.directory / "figures" / name, png)
    return pictures
