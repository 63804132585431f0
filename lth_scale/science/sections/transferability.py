"""The paper's Question 2: transferability against the source's training set and kind of task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.matching import p_text, signed
from lth_scale.science.paper import figure2, paper, sources
from lth_scale.science.rank_correlation import FEWEST, Correlation, spearman
from lth_scale.science.results import StudyResults, percent
from lth_scale.science.sections.transfer import (
    Transfers,
    is_papers,
    papers_transfers,
    sources_of,
    targets_of,
    transfers_of,
)
from lth_scale.tasks.registry import TASKS, metric_named

ROWS = "training rows of the source task"
DARK, MEAN = "dark cells", "mean difference"
LABELS = {
    DARK: "targets with at least the score\nof their own ticket (%)",
    MEAN: "ticket minus full network,\nmean over other targets (points)",
}
EXPLANATION = (
    "Dark cells: the share of the other targets on which the ticket scores at least as high as "
    "the target's own ticket. Mean difference: ticket minus full network, over the other targets "
    "whose scores are percentages. Neither counts what is dead or untrained. Training rows are "
    "those of the source's search after tokenization: windows of text for squad, and blocks of "
    "unlabelled text for mlm, which do not compare with labelled rows; ρ is therefore given with "
    "and without mlm. Sources whose number of rows is not known are left out. Spearman's ρ, with "
    f"its two-sided p over permutations of the sources; no claim below {FEWEST} sources. Sources "
    "differ in more than size, so ρ shows no cause."
)


@dataclass(frozen=True)
class Source:
    """A source task: rows, None if unknown; dark of `compared` targets; mean, NaN if unknown."""

    task: str
    rows: int | None
    dark: int
    compared: int
    mean: float

    @property
    def measures(self) -> dict[str, float]:
        """Transferability by DARK, in percent, and by MEAN; NaN where nothing is compared."""
        share = 100 * self.dark / self.compared if self.compared else math.nan
        return {DARK: share, MEAN: self.mean}

    @property
    def is_modelling(self) -> bool:
        """True if its rows are not labelled."""
        return TASKS[self.task].own_head


def transferability(study: StudyResults, sparsity: float) -> Section:
    """How well each source's ticket transfers; at 70 % also in the paper's Figure 2."""
    transfers, targets = transfers_of(study, sparsity), targets_of(study, sparsity)
    percents = [x for x in targets if metric_named(study.metric(x)).scale == 100]
    studies = {
        "ours": [
            _source(transfers, task, study.training_rows.get(task), targets, percents)
            for task in sources_of(study, sparsity)
        ]
    }
    title = f"Transferability of the sources at {percent(sparsity)}"
    question = f"Which sources' tickets transfer at {percent(sparsity)}? (the paper's Question 2)"
    section = Section(question, [EXPLANATION])
    name = f"transferability_{100 * sparsity:.3g}.png"
    if any(x.rows for x in studies["ours"]):
        section.pictures[name] = _figure(studies["ours"], study.title(title))
    if is_papers(sparsity):
        studies["paper"] = papers_sources()
        heading = "The same in the paper's Figure 2"
        section.pictures["transferability_paper.png"] = _figure(studies["paper"], heading)
        section.sources += sources(figure2().values())
    section.tables.append(_correlations(studies))
    section.details += [_table(*entry) for entry in studies.items()]
    return section


def _source(
    transfers: Transfers,
    task: str,
    rows: int | None,
    targets: Sequence[str],
    percents: Sequence[str],
) -> Source:
    """A source's transferability; percents: the targets whose scores are percentages."""
    others = [
        transfers.values[task, target]
        for target in percents
        if target != task and (task, target) in transfers.values.keys() - transfers.flawed
    ]
    known = [x for x in others if not math.isnan(x)]
    mean = sum(known) / len(known) if known else math.nan
    return Source(task, rows, *transfers.dark_cells(task, targets), mean)


def papers_sources() -> list[Source]:
    """The sources of the paper's Figure 2, with the training rows of its tasks."""
    transfers, tasks = papers_transfers(), [*paper()["hyperparameters"]]
    sizes = {task: paper()["hyperparameters"][task].get("train_examples_actual") for task in tasks}
    return [
        _source(transfers, task, size and size["value"], tasks, tasks)
        for task, size in sizes.items()
    ]


def _points(entries: Sequence[Source], measure: str) -> dict[str, tuple[int, float]]:
    """Training rows and transferability by task, of the sources for which both are known."""
    values = {x.task: (x.rows, x.measures[measure]) for x in entries}
    return {task: (rows, y) for task, (rows, y) in values.items() if rows and not math.isnan(y)}


def correlate(entries: Sequence[Source], measure: str) -> Correlation:
    """The rank correlation of training rows and transferability, by DARK or MEAN."""
    points = _points(entries, measure).values()
    return spearman([rows for rows, _ in points], [y for _, y in points])


def _correlations(studies: Mapping[str, Sequence[Source]]) -> Table:
    rows = []
    for name, entries in studies.items():
        labelled = [x for x in entries if not x.is_modelling]
        chosen = {"all sources": entries, "without mlm": labelled}
        for measure in LABELS:
            for label, some in chosen.items():
                rows.append([name, measure, label, *_texts(correlate(some, measure))])
    header = ["study", "transferability", "sources", "ρ", "p", "n"]
    return Table("Rank correlation with the training rows of the source", header, rows)


def _texts(correlation: Correlation) -> tuple[str, str, str]:
    rho, p, n = correlation
    if n < FEWEST:
        return f"no claim (n < {FEWEST})", "—", str(n)
    return ("undefined (all are tied)" if math.isnan(rho) else signed(rho)), p_text(p), str(n)


def _table(name: str, entries: Sequence[Source]) -> Table:
    rows = [
        [
            x.task,
            TASKS[x.task].category,
            f"{x.rows:,}" if x.rows else "not known",
            f"{x.dark} of {x.compared}",
            signed(x.mean),
        ]
        for x in entries
    ]
    header = ["source", "kind of task", "training rows", DARK, f"{MEAN}, points"]
    return Table(f"Sources: {name}", header, rows)


def _figure(entries: Sequence[Source], title: str) -> tuple[str, figures.Picture]:
    panels = {}
    for measure, ylabel in LABELS.items():
        groups: dict[str, dict[str, tuple[float, float]]] = {}
        for task, point in _points(entries, measure).items():
            groups.setdefault(TASKS[task].category, {})[task] = point
        rho, p, n = _texts(correlate(entries, measure))
        known = f"ρ = {rho}, p = {p}" if p != "—" else rho
        panels[f"{measure}: {known}, n = {n} sources"] = figures.Scatter(groups, ylabel)
    caption = "transferability against the training rows of the source"
    return caption, figures.scatters(panels, f"{ROWS} (mlm: blocks of text)", title)
