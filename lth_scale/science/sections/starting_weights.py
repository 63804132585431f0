"""The paper's Question 3: do tickets transfer better with θ₀ than with weights of their search?"""

from collections.abc import Mapping, Sequence

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.results import Network, StudyResults, percent, short_score
from lth_scale.science.sections.scores import answered
from lth_scale.science.sections.verdicts import (
    READING,
    Judged,
    by_rewind_point,
    in_order,
    point_name,
    verdict_table,
)
from lth_scale.tasks.registry import TASKS

EXPLANATION = (
    "The source's ticket, trained on a target with a new head, from θ₀, from the encoder of θᵢ of "
    "the source's search that rewinds to i (a fraction of the steps of a round), or from the "
    "trained weights of the source's standard pruning. Each has the ticket of its own search. All "
    "seeds of a target start from one ticket: the spread is that of training on the target. "
    "The answer compares with θ₀; Holm's p is over the starting weights of a target and source. "
    "The paper's numbers are not known here."
)

Points = Mapping[Network, Sequence[str]]


def starting_weights(study: StudyResults, sparsity: float, delta: float | None) -> Section:
    """Tickets on other tasks, with θ₀ and with weights of their search, at one sparsity."""
    tickets = _points(study, sparsity)
    question = f"Do tickets transfer best with θ₀ at {percent(sparsity)}? (the paper's Question 3)"
    title = study.title(f"Starting weights of transferred tickets at {percent(sparsity)}")
    picture = ("score by starting weights", _figure(study, tickets, title))
    families = {
        ticket: by_rewind_point(study, ticket, points, delta) for ticket, points in tickets.items()
    }
    rows = [
        ([ticket.task, ticket.source, point_name(point)], judged)
        for ticket, family in families.items()
        for point, judged in family.items()
    ]
    labels = ["target", "source", "starts from"]
    return Section(
        question,
        [EXPLANATION],
        [_scores(study, families)],
        {f"starting_weights_{100 * sparsity:.3g}.png": picture},
        reading=[READING],
        details=[verdict_table(study, "Starting weights compared with θ₀", labels, rows)],
    )


def _points(study: StudyResults, sparsity: float) -> Points:
    """By ticket and target, in order, the points other than θ₀ that it starts from."""
    rewound = [network for network in study.rewound_transfers() if network.sparsity == sparsity]
    tickets = [Network(t, sparsity, source=s) for t in study.tasks for s in TASKS]
    points = {
        ticket: in_order(x.rewind for x in rewound if x._replace(rewind="0") == ticket)
        for ticket in tickets
    }
    return {ticket: found for ticket, found in points.items() if found}


def _scores(study: StudyResults, families: Mapping[Network, Mapping[str, Judged]]) -> Table:
    """A row per target and source; each answer compares with θ₀."""
    points = in_order(point for family in families.values() for point in family)
    rows = []
    for ticket, family in families.items():
        full, scores = study.scores(ticket.full), study.scores(ticket)
        others = [study.scores(ticket._replace(rewind=point)) for point in points]
        n = max(map(len, (full, scores, *others)))
        names = [ticket.task, ticket.source, str(n), study.trivial_text(ticket.task)]
        judged = [answered(x, n, family.get(y)) for x, y in zip(others, points, strict=True)]
        rows.append([*names, *(short_score(x, n) for x in (full, scores)), *judged])
    header = ["target", "source", "n", "trivial", "full network", *map(point_name, ["0", *points])]
    return Table("Scores by starting weights", header, rows)


def _figure(study: StudyResults, tickets: Points, title: str) -> figures.Picture:
    panels = {}
    for target in dict.fromkeys(ticket.task for ticket in tickets):
        own = {ticket: points for ticket, points in tickets.items() if ticket.task == target}
        panels[target] = _panel(study, target, own)
    return figures.starting_weights(panels, title)


def _panel(study: StudyResults, target: str, tickets: Points) -> figures.Panel:
    """The scores that are known on a target, by source."""
    by_source = {
        ticket.source: {
            point_name(x): study.scores(ticket._replace(rewind=x)).dropna().to_list()
            for x in ("0", *points)
        }
        for ticket, points in tickets.items()
    }
    baseline, full = study.baseline(target), study.scores(Network(target)).dropna().to_list()
    return figures.Panel(by_source, full, study.metric(target), baseline and baseline[1])
