"""What all figures have in common: Matplotlib's own style, panels, titles, PNG."""

import functools
import io
import logging
import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

from lth_scale.config import caches
from lth_scale.config.texts import first_line, printable
from lth_scale.distributed import compat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("lth_scale")
P = ParamSpec("P")
Style = dict[str, Any]  # keyword arguments of Matplotlib
WHITE_BOX: Style = {"facecolor": "white", "edgecolor": "none", "pad": 1}
MOST_COLUMNS = 3


def drawn(picture: Callable[P, bytes]) -> Callable[P, bytes]:
    """Draw a picture in Matplotlib's default style, whatever MPLBACKEND and matplotlibrc say.

    A picture that cannot be drawn is b"" and a warning: its content is in the tables too.
    """

    @functools.wraps(picture)
    def draw(*args: P.args, **kwargs: P.kwargs) -> bytes:
        try:
            caches.ensure_writable("MPLCONFIGDIR")
            compat.import_matplotlib()
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                return picture(*args, **kwargs)
        except Exception as problem:  # Matplotlib and its dependencies raise many kinds
            log.warning("a picture is left out: it cannot be drawn (%s)", first_line(problem))
            return b""

    return draw


def panels(width: float, height: float, count: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` axes of width × height inches each, at most three in a row."""
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (columns * width, rows * height)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def plain(text: str) -> str:
    """A text that Matplotlib shows literally, without formulas between dollars."""
    return printable(text).replace("$", r"\$")


def set_title(figure: "Figure", title: str) -> None:
    """Set a figure's title, wrapped at its width."""
    letters = int(11 * figure.get_figwidth())
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, letters)]
    figure.suptitle(plain("\n".join(lines)), fontsize=11)


def add_legend(figure: "Figure", axes: "list[Axes]", columns: int) -> None:
    """Add one legend for all axes below them, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        lines, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    style: Style = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend(list(handles.values()), list(handles), ncols=columns, **style)


def png(figure: "Figure") -> bytes:
    """Encode a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
