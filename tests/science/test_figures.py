"""figures.py: titles fit, text is literal, and settings of Matplotlib have no effect."""

import math
import os
import subprocess
import sys

import pytest

from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures

NOTE = "the encoder inside the package, adapted to Wikipedia paragraphs for 1,500 steps; " * 2
GRID = figures.Grid(
    ["mlm"],
    ["sst2", "mrpc"],
    {("mlm", "sst2"): (0.5, "+0.10"), ("mlm", "mrpc"): (math.nan, "missing")},
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda title: figures.heat_maps({"": GRID}, title),
        lambda title: figures.scores(
            {"sst2": ({"none": {0.0: [80.0], 70.0: []}}, [80.0])}, "sparsity", title
        ),
        lambda title: figures.speed_ups(
            {"1 × 128": {"csr": {70.0: (0.9, 0.8, 1.0)}}}, {}, {"csr"}, title
        ),
    ],
    ids=["heat map", "scores", "speed-ups"],
)
def test_a_long_title_fits_into_the_figure(draw, monkeypatch):
    drawn = []
    png = figures.png
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or png(figure))
    draw(f"Transfer at 70 %\n{NOTE}")
    (figure,) = drawn
    box = figure._suptitle.get_window_extent()
    assert (
        box.x0 >= 0
        and box.x1 <= figure.bbox.x1
        and figure._suptitle.get_text().startswith("Transfer at 70 %\n")
    )


BARS = """
import os, sys
from lth_scale.science import figures
sys.stdout.buffer.write(figures.sparsity_by_layer({"a.weight": 0.5}, "bars"))
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
    assert (
        drawn[0]
        == drawn[1]
        == drawn[2]
        == figures.sparsity_by_layer({"a.weight": 0.5}, "bars")
        != b""
    )


def test_every_control_has_a_style_of_its_own():
    assert len(CONTROLS) <= len(figures.STYLES)
    for fact in ("color", "linestyle", "marker"):
        assert len({str(style[fact]) for style in figures.STYLES}) == len(figures.STYLES)


def test_a_failed_figure_is_empty_and_logs_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(
        figures, "png", lambda figure: (_ for _ in ()).throw(RuntimeError("no\nfonts"))
    )
    assert figures.sparsity_by_layer({"a.weight": 0.5}, "bars") == b""
    assert [record.getMessage() for record in caplog.records] == [
        "a figure is omitted because drawing it failed (no)"
    ]


DRAWN = [
    lambda title: figures.heat_maps({title: figures.Grid([title], ["mrpc"], {})}, title),
    lambda title: figures.scores({title: ({"none": {title: [80.0]}}, [80.0])}, "sparsity", title),
    lambda title: figures.speed_ups({title: {title: {70.0: (0.9, 0.8, 1.0)}}}, {}, {title}, title),
    lambda title: figures.sparsity_by_layer({title: 0.5}, title),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", DRAWN, ids=["heat map", "scores", "speed-ups", "layers"])
@pytest.mark.parametrize("text", [r"$\frac{$", "$a$ $^", r"\$5$", "a\x1bb"])
def test_dollars_and_control_characters_are_shown_literally(draw, text):
    assert draw(text)
