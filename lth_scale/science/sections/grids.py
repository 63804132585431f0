"""A grid of numbers as a table and as a heat map."""

from typing import Any

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures


def add_grid(
    section: Section, grid: figures.Grid, heading: str, name: str, title: str, **style: Any
) -> None:
    """Add a grid to a section; `name`: of the picture's file; `style`: for `figures.heat_maps`."""
    rows = [
        [row, *(grid.cells.get((row, column), (0, "—"))[1] for column in grid.columns)]
        for row in grid.rows
    ]
    section.tables.append(Table(heading, ["", *grid.columns], rows))
    section.pictures[name] = (heading, figures.heat_maps({"": grid}, title, **style))
