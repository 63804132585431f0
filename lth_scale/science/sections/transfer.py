"""The paper's Figure 2: tickets on other tasks."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.matching import at_least
from lth_scale.science.paper import PRUNED_THETA0, figure2, paper, sources
from lth_scale.science.results import CLOSE, OTHER, StudyResults
from lth_scale.science.sections.grids import add_grid
from lth_scale.science.texts import difference, percent, signed
from lth_scale.tasks.registry import TASKS

DARK, LIGHT = 0.0, 1.0
STYLE = {"span": (DARK, LIGHT), "cmap": "Blues_r"}
PAPER_SPARSITY = 0.7


def transfer(study: StudyResults, sparsity: float) -> Section:
    """Each ticket on each task, minus the full network, beside the paper's Figure 2."""
    rows = study.conditions
    across = rows[(rows.sparsity == sparsity) & (rows.network == OTHER)]
    targets = [task for task in study.tasks if task in {*across.task}]
    scores = {(s, t): study.scores(t, sparsity, source=s) for s in TASKS for t in targets}
    scores |= {(PRUNED_THETA0, t): study.scores(t, sparsity, "one_shot") for t in targets}
    planned = {pair: values for pair, values in scores.items() if not values.empty}
    shown = {PRUNED_THETA0, *across.source}
    tickets = [s for s in dict.fromkeys(s for s, _ in planned) if s in shown]
    counts = {values.count() for (s, _), values in planned.items() if s in shown} - {0} or {0}
    here = transfer_grid(
        {(s, t): difference(values, study.scores(t)) for (s, t), values in planned.items()},
        tickets,
        targets,
    )
    section = Section(
        f"Transfer at {percent(sparsity)} (the paper's Figure 2)",
        [
            "Mean score of the transferred ticket minus that of the full network, "
            f"n = {' or '.join(map(str, sorted(counts)))} (each in the last section). Dark, ●: "
            f"{paper()['definitions']['figure2_dark_cell']['value']}; that compares means, "
            "no test. Rows are sources, whose ticket it is; columns are targets, the tasks trained."
        ],
    )
    grids = {"here": here}
    name, title = f"transfer_{100 * sparsity:.3g}.png", study.title(percent(sparsity))
    add_grid(section, here, "Transfer − full network, points", name, title, **STYLE)
    if abs(sparsity - PAPER_SPARSITY) <= CLOSE:
        grids["paper"] = add_paper_grid(section, tickets, targets)
    section.tables.append(dark_cells(grids, tickets))
    return section


def add_paper_grid(
    section: Section, tickets: Sequence[str], targets: Sequence[str]
) -> figures.Grid:
    """Add the same rows and columns of the paper's Figure 2, and return them."""
    values = {(s, t): v for s, row in figure2().items() for t, v in row["value"].items()}
    grid = transfer_grid(values, tickets, targets)
    section.text.append(sources(figure2().values()))
    heading = "The same cells in the paper (n = 3), points"
    title = "the paper's Figure 2, the same cells"
    add_grid(section, grid, heading, "transfer_paper.png", title, **STYLE)
    return grid


def dark_cells(grids: Mapping[str, figures.Grid], tickets: Sequence[str]) -> Table:
    """How many dark cells each ticket has in each grid."""
    counts = [
        Counter(source for (source, _), (_, text) in grid.cells.items() if "●" in text)
        for grid in grids.values()
    ]
    rows = [[source, *(str(count[source]) for count in counts)] for source in tickets]
    return Table("Dark cells of each source, its own task not counted", ["source", *grids], rows)


def transfer_grid(
    values: Mapping[tuple[str, str], float], sources: Sequence[str], targets: Sequence[str]
) -> figures.Grid:
    """A grid of differences by (source, target).

    As in the paper's Figure 2, a cell is dark if the ticket of another task is at least as good
    as the target's own.
    """
    cells = {}
    for source, target in product(sources, targets):
        if (source, target) not in values:
            continue
        value, own = values[source, target], values.get((target, target), math.nan)
        dark = source != target and bool(at_least(value, own))
        shade = math.nan if math.isnan(value) else DARK if dark else LIGHT
        cells[source, target] = (shade, signed(value) + " ●" * dark)
    return figures.Grid(sources, targets, cells)
