"""Tickets on other tasks; at 70 % the paper's Figure 2."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.matching import at_least, signed
from lth_scale.science.paper import PRUNED_THETA0, figure2, sources
from lth_scale.science.results import (
    CLOSE,
    OTHER,
    Network,
    StudyResults,
    mean_difference,
    percent,
    summarize,
)
from lth_scale.science.sections.verdicts import flaw_of
from lth_scale.tasks.registry import TASKS, metric_named

DARK, LIGHT = 0.0, 1.0
SHADES = {DARK: "● at least as high as the task's own", LIGHT: "lower, or the task's own"}
PAPER_SPARSITY = 0.7
HATCHED = (
    "Crossed cells (†): the network, or the full network of the target task, is dead or untrained "
    "(see What was trained, and what is missing?); they are never dark, and neither are cells of a "
    "target whose own ticket is."
)
Pair = tuple[str, str]  # source, target


@dataclass(frozen=True)
class Transfers:
    """Tickets on tasks: their mean scores minus the full network's by (source, target).

    In the unit printed, positive where the ticket is better; NaN if missing. flawed: the pairs
    whose network, or whose target's full network, is dead or untrained.
    """

    values: Mapping[Pair, float]
    flawed: frozenset[Pair] = frozenset()

    def is_dark(self, source: str, target: str) -> bool | None:
        """Whether the ticket of another task is at least as good as the target's own.

        None if they cannot be compared: one is missing, dead or untrained, or they are the same.
        """
        pairs = (source, target), (target, target)
        if source == target or self.flawed.intersection(pairs):
            return None
        return at_least(*(self.values.get(pair, math.nan) for pair in pairs))

    def dark_cells(self, source: str, targets: Sequence[str]) -> tuple[int, int]:
        """How many cells of a source are dark, and how many could be."""
        answers = [self.is_dark(source, target) for target in targets]
        return answers.count(True), len(answers) - answers.count(None)

    def grid(self, sources: Sequence[str], targets: Sequence[str]) -> figures.Grid:
        """The pairs that are planned: dark, light, or hatched."""
        pairs = (pair for pair in product(sources, targets) if pair in self.values)
        cells = {pair: self._cell(pair) for pair in pairs}
        return figures.Grid(sources, targets, cells, "source task", "target task", self.flawed)

    def _cell(self, pair: Pair) -> tuple[float, str]:
        text, is_dark = signed(self.values[pair]), self.is_dark(*pair)
        if math.isnan(self.values[pair]):
            return math.nan, text
        if is_dark:
            return DARK, f"{text} ●"
        return LIGHT, text + " †" * (pair in self.flawed)


def transfers_of(study: StudyResults, sparsity: float) -> Transfers:
    """The tickets, and θ₀ pruned, that are trained on other tasks at a sparsity."""
    targets = targets_of(study, sparsity)
    tickets = [(s, t, Network(t, sparsity, source=s)) for s in TASKS for t in targets]
    one_shot = [(PRUNED_THETA0, t, Network(t, sparsity, "one_shot")) for t in targets]
    planned = {
        (source, target): network
        for source, target, network in (*tickets, *one_shot)
        if not study.scores(network).empty
    }
    values = {pair: _improvement(study, network) for pair, network in planned.items()}
    return Transfers(values, frozenset(pair for pair, x in planned.items() if flaw_of(study, x)))


def _improvement(study: StudyResults, network: Network) -> float:
    difference = mean_difference(study.scores(network), study.scores(network.full))
    return _sign(study, network.task) * difference


def _sign(study: StudyResults, task: str) -> int:
    return metric_named(study.metric(task)).sign


def papers_transfers() -> Transfers:
    """The paper's Figure 2."""
    rows = figure2().items()
    return Transfers({(s, t): x for s, row in rows for t, x in row["value"].items()})


def targets_of(study: StudyResults, sparsity: float) -> list[str]:
    """The tasks on which tickets of others are trained at a sparsity."""
    targets = {*_across(study, sparsity).task}
    return [task for task in study.tasks if task in targets]


def sources_of(study: StudyResults, sparsity: float) -> list[str]:
    """The tasks whose tickets are trained on others at a sparsity."""
    found = {*_across(study, sparsity).source}
    return [task for task in TASKS if task in found]


def _across(study: StudyResults, sparsity: float) -> pandas.DataFrame:
    rows = study.conditions
    return rows[(rows.sparsity == sparsity) & (rows.network == OTHER)]


def is_papers(sparsity: float) -> bool:
    """True at the sparsity of the paper's Figure 2."""
    return abs(sparsity - PAPER_SPARSITY) <= CLOSE


def transfer(study: StudyResults, sparsity: float) -> Section:
    """Each ticket on each task, minus the full network; at 70 % beside the paper's Figure 2."""
    ours, targets = transfers_of(study, sparsity), targets_of(study, sparsity)
    one_shot = [PRUNED_THETA0] * any(source == PRUNED_THETA0 for source, _ in ours.values)
    tickets = [*sources_of(study, sparsity), *one_shot]
    networks = [Network(t, sparsity, source=s) for s in tickets for t in targets if s in TASKS]
    networks += [Network(t, sparsity, "one_shot") for t in targets]
    n = figures.count_text(study.scores(network).count() for network in networks)
    section = Section(
        f"Do tickets transfer at {percent(sparsity)}?"
        + " (the paper's Figure 2)" * is_papers(sparsity),
        [_introduction(study, sparsity, n, targets), HATCHED],
    )
    heading = "Transfer minus full network, points"
    name = f"transfer_{100 * sparsity:.3g}.png"
    title = f"Transfer at {percent(sparsity)}: difference to the full network (points), {n}"
    grid = ours.grid(tickets, targets)
    section.tables.append(grid.table(heading))
    _add_picture(section, grid, heading, name, study.title(title))
    columns = {"ours": ours}
    if is_papers(sparsity):
        columns["paper"] = papers_transfers()
        section.sources += sources(figure2().values())
        heading = "The same cells in the paper (n = 3), points"
        title = "The same cells in the paper's Figure 2 (points), n = 3"
        grid = columns["paper"].grid(tickets, targets)
        section.details.append(grid.table(heading))
        _add_picture(section, grid, heading, "transfer_paper.png", title)
    section.details.append(_dark_cells(columns, tickets, targets))
    return section


def _introduction(study: StudyResults, sparsity: float, n: str, targets: Sequence[str]) -> str:
    return (
        "Mean score of the transferred ticket minus that of the full network, positive where the "
        f"ticket is better, {n}. Dark "
        "cells (●): the ticket of another task scores at least as high as the task's own, both at "
        f"{percent(sparsity)}; this compares means, without a test. Rows are the source tasks of "
        "the tickets, columns the target tasks." + _trivial(study, targets)
    )


def _trivial(study: StudyResults, targets: Sequence[str]) -> str:
    """What the best trivial predictor of each target would have in the table."""
    parts = []
    for target in targets:
        if best := study.baseline(target):
            full, sign = summarize(study.scores(Network(target))).mean, _sign(study, target)
            parts.append(f"{target} {signed(sign * (best[1] - full))}")
    return f" The best trivial predictor would have {', '.join(parts)}." if parts else ""


def _add_picture(section: Section, grid: figures.Grid, heading: str, name: str, title: str) -> None:
    section.pictures[name] = (heading, figures.heat_maps({"": grid}, title, shades=SHADES))


def _dark_cells(
    columns: Mapping[str, Transfers], tickets: Sequence[str], targets: Sequence[str]
) -> Table:
    rows = [
        [source, *("{} of {}".format(*x.dark_cells(source, targets)) for x in columns.values())]
        for source in tickets
    ]
    return Table("Dark cells by source, its own task excluded", ["source", *columns], rows)
