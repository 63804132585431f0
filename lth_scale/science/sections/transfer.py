"""Tickets on other tasks; at 70 % the paper's Figure 2."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.matching import at_least, signed
from lth_scale.science.paper import PRUNED_THETA0, figure2, sources
from lth_scale.science.results import CLOSE, OTHER, Network, StudyResults, mean_difference, percent
from lth_scale.tasks.registry import TASKS

DARK, LIGHT = 0.0, 1.0
SHADES = {DARK: "● at least as high as the task's own", LIGHT: "lower, or the task's own"}
PAPER_SPARSITY = 0.7


def transfer(study: StudyResults, sparsity: float) -> Section:
    """Each ticket on each task, minus the full network; at 70 % beside the paper's Figure 2."""
    rows = study.conditions
    across = rows[(rows.sparsity == sparsity) & (rows.network == OTHER)]
    targets = [task for task in study.tasks if task in {*across.task}]
    scores = {(s, t): study.scores(Network(t, sparsity, source=s)) for s in TASKS for t in targets}
    scores |= {(PRUNED_THETA0, t): study.scores(Network(t, sparsity, "one_shot")) for t in targets}
    planned = {pair: x for pair, x in scores.items() if not x.empty}
    shown = {PRUNED_THETA0, *across.source}
    tickets = [source for source in dict.fromkeys(s for s, _ in planned) if source in shown]
    counts = {x.count() for (s, _), x in planned.items() if s in shown} - {0} or {0}
    ours = transfer_grid(
        {(s, t): mean_difference(x, study.scores(Network(t))) for (s, t), x in planned.items()},
        tickets,
        targets,
    )
    is_papers = abs(sparsity - PAPER_SPARSITY) <= CLOSE
    section = Section(
        f"Do tickets transfer at {percent(sparsity)}?" + " (the paper's Figure 2)" * is_papers,
        [
            "Mean score of the transferred ticket minus that of the full network, "
            f"n = {' or '.join(map(str, sorted(counts)))}. Dark cells (●): the "
            "ticket of another task scores at least as high as the task's own, both at "
            f"{percent(sparsity)}; this compares means, without a test. Rows are the source tasks "
            "of the tickets, columns the target tasks."
        ],
    )
    heading = "Transfer minus full network, points"
    name = f"transfer_{100 * sparsity:.3g}.png"
    _add_grid(
        section,
        ours,
        heading,
        name,
        study.title(f"Transfer at {percent(sparsity)}: difference to the full network (points)"),
    )
    grids = {"ours": ours}
    if is_papers:
        values = {(s, t): x for s, row in figure2().items() for t, x in row["value"].items()}
        grids["paper"] = transfer_grid(values, tickets, targets)
        section.sources += sources(figure2().values())
        heading = "The same cells in the paper (n = 3), points"
        title = "The same cells in the paper's Figure 2 (points)"
        _add_grid(section, grids["paper"], heading, "transfer_paper.png", title)
    section.tables.append(_dark_cells(grids, tickets))
    return section


def _add_grid(section: Section, grid: figures.Grid, heading: str, name: str, title: str) -> None:
    section.tables.append(grid.table(heading))
    section.pictures[name] = (heading, figures.heat_maps({"": grid}, title, shades=SHADES))


def _dark_cells(grids: Mapping[str, figures.Grid], tickets: Sequence[str]) -> Table:
    counts = [
        Counter(source for (source, _), (_, text) in grid.cells.items() if "●" in text)
        for grid in grids.values()
    ]
    rows = [[source, *(str(count[source]) for count in counts)] for source in tickets]
    return Table("Dark cells by source, its own task excluded", ["source", *grids], rows)


def transfer_grid(
    values: Mapping[tuple[str, str], float], sources: Sequence[str], targets: Sequence[str]
) -> figures.Grid:
    """A grid of differences by (source, target).

    A cell is dark if the ticket of another task is at least as good as the target's own.
    """
    cells = {}
    for source, target in product(sources, targets):
        if (source, target) not in values:
            continue
        value, own = values[source, target], values.get((target, target), math.nan)
        dark = source != target and bool(at_least(value, own))
        shade = math.nan if math.isnan(value) else DARK if dark else LIGHT
        cells[source, target] = (shade, signed(value) + " ●" * dark)
    return figures.Grid(sources, targets, cells, "source task", "target task")
