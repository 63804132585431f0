"""Pictures of a search, legible in greyscale and to colour-blind readers."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lth_scale import files
from lth_scale.record import Record

# Okabe & Ito's palette; line style and marker say the same again.
STYLES = {"none": ("#0072B2", "-", "o"), "random_mask": ("#D55E00", "--", "s")}
LABELS = {"none": "IMP ticket", "random_mask": "random mask"}


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


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


def draw(record: Record, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Draw a search's pictures into its directory; returns them by file name."""
    args = record.arguments
    rows = {control: record.rows(control) for control in dict.fromkeys(("none", args.control))}
    metric = next(iter(rows["none"][0]["eval"]))
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    pictures = {
        "score_against_sparsity.png": score_against_sparsity(rows, metric, title),
        "sparsity_by_layer.png": sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    for name, png in pictures.items():
        files.write_bytes(record.directory / "figures" / name, png)
    return pictures
