"""figures.py: what the axes, bars, bands and legends say; files; and no setting has an effect."""

import math
import os
import statistics
import subprocess
import sys
from itertools import pairwise

import pytest

from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures

NOTE = "the encoder inside the package, adapted to Wikipedia paragraphs for 1,500 steps; " * 2
GRID = figures.Grid(
    ["mlm", "sst2"],
    ["sst2", "mrpc"],
    {
        ("mlm", "sst2"): (1.0, "+0.10"),
        ("mlm", "mrpc"): (math.nan, "missing"),
        ("sst2", "sst2"): (0.0, "−0.20"),
    },
    "source task",
    "target task",
)
SEEDS = [80.0, 81.0, 83.0]


def panel(lines, full=(80.0,), metric="accuracy", trivial=None):
    return figures.Panel(lines, full, metric, trivial)


def draw_scores(**panels):
    """The axes of a figure of scores, drawn once."""
    figure = figures.scores(panels, figures.SPARSITY, "title").figure
    figure.canvas.draw()
    return figure.axes[: len(panels)]


def bars(ax):
    """The centre and half the length of each error bar."""
    ends = [
        (segment[0][1], segment[1][1])
        for container in ax.containers
        for segment in container.lines[2][0].get_segments()
        if len(segment) and not math.isnan(segment[0][1])
    ]
    return [((low + high) / 2, (high - low) / 2) for low, high in ends]


def test_bars_and_band_are_one_sample_standard_deviation():
    (ax,) = draw_scores(sst2=panel({"none": {0.0: SEEDS, 50.0: SEEDS[:2]}}, SEEDS))
    expected = [(statistics.fmean(x), statistics.stdev(x)) for x in (SEEDS, SEEDS[:2])]
    for bar, moments in zip(bars(ax), expected, strict=True):
        assert bar == pytest.approx(moments)
    (band,) = (patch for patch in ax.patches if patch.get_label() == "full network ± sd")
    mean, sd = expected[0]
    low, high = band.get_y(), band.get_y() + band.get_height()
    assert (low, high) == pytest.approx((mean - sd, mean + sd))
    assert ax.get_ylabel() == "accuracy (%), mean ± sd" and ax.get_title() == "sst2 (n = 2–3)"


def test_a_single_seed_has_no_bar_and_no_band():
    (ax,) = draw_scores(sst2=panel({"none": {0.0: [80.0], 50.0: [79.0]}}))
    assert bars(ax) == [] and ax.get_ylabel() == "accuracy (%)" and ax.get_title() == "sst2 (n = 1)"
    assert "full network ± sd" not in ax.get_legend_handles_labels()[1]


def test_the_label_of_a_metric_that_is_no_fraction_has_no_percent():
    (ax,) = draw_scores(mine=panel({"none": {0.0: [3.2]}}, [3.2], "perplexity"))
    assert ax.get_ylabel() == "perplexity, less is better"


def test_the_full_network_and_the_best_trivial_predictor_are_lines():
    (ax,) = draw_scores(sst2=panel({"none": {0.0: [80.0]}}, trivial=51.0))
    heights = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
    assert heights["full network"] == 80.0 and heights["best trivial predictor"] == 51.0


@pytest.mark.parametrize("sparsities", [(50.0,), (50.0, 60.0), (10.0, 20.0, 50.0, 90.0)])
def test_controls_of_one_sparsity_are_beside_each_other(sparsities):
    controls = ("random_mask", "reinit", "shuffle_within", "one_shot")
    lines = {"none": {x: [80.0] for x in (0.0, *sparsities)}}
    lines |= {control: {x: [80.0] for x in sparsities} for control in controls}
    (ax,) = draw_scores(sst2=panel(lines))
    drawn = sorted(
        ax.transData.transform(point)[0]
        for container in ax.containers
        for point in container.lines[0].get_xydata()
        if point[0] > 0
    )
    points = [x * 72 / ax.figure.dpi for x in drawn]
    assert len(points) == 5 * len(sparsities)
    assert min(b - a for a, b in pairwise(points)) > 3
    assert {*ax.containers[0].lines[0].get_xdata()} == {0.0, *sparsities}  # those of the tickets


def test_a_difference_has_the_same_height_in_panels_of_the_same_metric():
    axes = draw_scores(
        sst2=panel({"none": {0.0: [90.0], 50.0: [50.0]}}),
        wnli=panel({"none": {0.0: [56.0], 90.0: [55.0]}}),
        cola=panel({"none": {0.0: [50.0], 50.0: [49.0]}}, [50.0], "matthews_correlation"),
    )
    sst2, wnli, cola = (high - low for low, high in (ax.get_ylim() for ax in axes))
    assert sst2 == pytest.approx(wnli) and sst2 > 10 * cola
    assert len({ax.get_xlim() for ax in axes}) == 1 and axes[1].get_ylim()[1] < 90


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_heat_maps_name_their_axes_and_explain_shades_and_hatches():
    grid = figures.Grid(GRID.rows, GRID.columns, GRID.cells, "source", "target", {("mlm", "sst2")})
    figure = figures.heat_maps({"": grid}, "title", shades={0.0: "universal", 1.0: "not"}).figure
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target", "source")
    assert legend_of(figure) == ["universal", "not", "missing", "no verdict: dead or untrained"]
    hatches = {patch.get_xy(): patch.get_hatch() for patch in ax.patches}
    assert hatches == {(-0.5, -0.5): "xxxx", (0.5, -0.5): "////"}
    image = ax.images[0].get_array()
    assert image.mask.tolist() == [[True, True], [False, True]]  # an absent cell stays blank
    assert {"+0.10", "missing", "−0.20"} == {text.get_text() for text in ax.texts}


def test_hatches_that_do_not_occur_are_not_in_the_legend():
    cells = {("mlm", "sst2"): (0.5, "0.5")}
    assert not legend_of(
        figures.heat_maps({"": figures.Grid(["mlm"], ["sst2"], cells)}, "t").figure
    )


def test_an_outlier_does_not_own_the_colours_and_the_bar_shows_it():
    names = [*map(str, range(12))]
    numbers = [70.0, 71.0, 72.0, 70.5, 71.5, 69.0, 70.0, 71.0, 72.5, 70.0, 71.0, 0.0]
    cells = {(name, "query"): (x, f"{x:g}") for name, x in zip(names, numbers, strict=True)}
    grid = figures.Grid(names, ["query"], cells)
    figure = figures.heat_maps({"": grid}, "title", "pruned weights (%)").figure
    image = figure.axes[0].images[0]
    assert image.get_clim() == (69.0, 72.5)
    assert image.colorbar.extend == "min" and figure.axes[1].get_ylabel() == "pruned weights (%)"


def test_whiskers_are_the_ends_without_outliers():
    assert figures.whiskers([1.0, 2.0, 3.0]) == (1.0, 3.0)
    assert figures.whiskers([5.0]) == (5.0, 5.0) and figures.whiskers([]) == (0.0, 100.0)
    # Quartiles 2 and 4 (linear interpolation): whiskers reach to −1 and 7.
    assert figures.whiskers([1.0, 2.0, 3.0, 4.0, 7.1]) == (1.0, 4.0)


def test_panels_of_speed_ups_share_their_axes():
    panels = {
        "1 × 128": {"csr": {70.0: (0.9, 0.8, 1.0)}},
        "32 × 128": {"csr": {70.0: (4.0, 3.9, 4.1)}},
    }
    figure = figures.speed_ups(panels, {}, {"csr"}, "cpu").figure
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim() and first.get_xlim() == second.get_xlim()
    assert "median and quartiles" in first.get_ylabel() and "(%)" in first.get_xlabel()


@pytest.mark.parametrize(
    "draw",
    [
        lambda title: figures.heat_maps({"": GRID}, title),
        lambda title: figures.scores(
            {"sst2": panel({"none": {0.0: [80.0], 70.0: []}})}, "sparsity", title
        ),
        lambda title: figures.speed_ups(
            {"1 × 128": {"csr": {70.0: (0.9, 0.8, 1.0)}}}, {}, {"csr"}, title
        ),
    ],
    ids=["heat map", "scores", "speed-ups"],
)
def test_a_long_title_fits_into_the_figure(draw):
    picture = draw(f"Transfer at 70 %\n{NOTE}")
    assert picture.png
    figure = picture.figure
    box = figure._suptitle.get_window_extent()
    assert (
        box.x0 >= 0
        and box.x1 <= figure.bbox.x1
        and figure._suptitle.get_text().startswith("Transfer at 70 %\n")
    )


BARS = """
import os, sys
from lth_scale.science import figures
grid = figures.Grid(["a"], ["b"], {("a", "b"): (float("nan"), "c")})
bars = figures.sparsity_by_layer({"a.weight": 0.5}, "bars")
for picture in (bars, figures.heat_maps({"": grid}, "map")):
    for content in picture.files("bars.png").values():
        sys.stdout.buffer.write(content)
assert os.environ.get("MPLBACKEND") == sys.argv[1]
"""


def test_figures_ignore_the_settings_of_matplotlib(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(
        b"text.usetex: True\nfont.size: 40\nsavefig.dpi: 9\n\xff"
    )
    drawn = [
        subprocess.run(
            [sys.executable, "-c", BARS, backend],
            env={**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path)},
            check=True,
            capture_output=True,
        ).stdout
        for backend in ("agg", "module://matplotlib_inline.backend_inline", "no such thing")
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    picture = figures.sparsity_by_layer({"a.weight": 0.5}, "bars")
    assert drawn[0].startswith(b"".join(picture.files("bars.png").values())) and picture.pdf


def test_a_picture_has_three_files_of_the_same_figure_without_dates():
    contents = figures.heat_maps({"": GRID}, "title").files("map.png")
    alone = figures.heat_maps({"": GRID}, "title")
    assert (alone.pdf, alone.svg) == (contents["map.pdf"], contents["map.svg"])
    assert [*contents] == ["map.png", "map.svg", "map.pdf"]
    beginnings = {name: content[:5] for name, content in contents.items()}
    assert beginnings == {"map.png": b"\x89PNG\r", "map.svg": b"<?xml", "map.pdf": b"%PDF-"}
    assert b"Date" not in contents["map.pdf"] and b"dc:date" not in contents["map.svg"]
    assert b"/Type3" not in contents["map.pdf"]


def test_every_control_has_a_style_of_its_own():
    assert len(CONTROLS) <= len(figures.STYLES)
    for fact in ("color", "linestyle", "marker"):
        assert len({str(style[fact]) for style in figures.STYLES}) == len(figures.STYLES)


def test_a_failed_figure_is_empty_and_logs_a_warning(monkeypatch, caplog):
    def fail(figure, format):
        raise RuntimeError("no\nfonts")

    picture = figures.sparsity_by_layer({"a.weight": 0.5}, "bars")
    monkeypatch.setattr(figures, "render", fail)
    assert picture.png == b""
    monkeypatch.undo()
    empty = figures.sparsity_by_layer({"a.weight": None}, "bars")
    assert empty.files("bars.png") == {}
    messages = [record.getMessage() for record in caplog.records]
    assert (
        messages[0] == "a figure is omitted because drawing it failed (no)" and len(messages) == 2
    )


DRAWN = [
    lambda title: figures.heat_maps({title: figures.Grid([title], ["mrpc"], {})}, title),
    lambda title: figures.scores({title: panel({"none": {title: [80.0]}})}, "sparsity", title),
    lambda title: figures.speed_ups({title: {title: {70.0: (0.9, 0.8, 1.0)}}}, {}, {title}, title),
    lambda title: figures.sparsity_by_layer({title: 0.5}, title),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", DRAWN, ids=["heat map", "scores", "speed-ups", "layers"])
@pytest.mark.parametrize("text", [r"$\frac{$", "$a$ $^", r"\$5$", "a\x1bb"])
def test_dollars_and_control_characters_are_shown_literally(draw, text):
    assert len(draw(text).files("drawn.png")) == 3
