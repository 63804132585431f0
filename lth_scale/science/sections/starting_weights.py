"""The paper's Question 3: do tickets transfer better with θ₀ than with weights of their search?"""

from collections.abc import Mapping, Sequence

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.matching import answer_text, interval_text, n_text, p_texts, signed
from lth_scale.science.results import Network, StudyResults, percent, score_text
from lth_scale.science.sections.verdicts import Judged, by_rewind_point, in_order, point_name
from lth_scale.tasks.registry import TASKS, metric_named

EXPLANATION = (
    "The source's ticket, trained on a target with a new head, from θ₀, from the encoder of θᵢ of "
    "the source's search that rewinds to i (a fraction of the steps of a round), or from the "
    "trained weights of the source's standard pruning. Each has the ticket of its own search. All "
    "seeds of a target start from one ticket: the spread is that of training on the target; bars "
    "range from the lowest to the highest seed. "
    "Verdicts are to be read as under All verdicts, with θ₀ as the reference; Holm's p is over "
    "the starting weights of a target and source. The paper's numbers are not known here."
)

Points = Mapping[Network, Sequence[str]]


def starting_weights(study: StudyResults, sparsity: float, delta: float | None) -> Section:
    """Tickets on other tasks, with θ₀ and with weights of their search, at one sparsity."""
    tickets = _points(study, sparsity)
    title = f"Question 3: starting weights of transferred tickets at {percent(sparsity)}"
    name, caption = f"starting_weights_{100 * sparsity:.3g}.png", "score by starting weights"
    png = _figure(study, tickets, study.title(title))
    return Section(title, [EXPLANATION], [_table(study, tickets, delta)], {name: (caption, png)})


def _points(study: StudyResults, sparsity: float) -> Points:
    """By ticket and target, in order, the points other than θ₀ that it starts from."""
    rewound = [network for network in study.rewound_transfers() if network.sparsity == sparsity]
    tickets = [Network(t, sparsity, source=s) for t in study.tasks for s in TASKS]
    points = {
        ticket: in_order(x.rewind for x in rewound if x._replace(rewind="0") == ticket)
        for ticket in tickets
    }
    return {ticket: found for ticket, found in points.items() if found}


def _table(study: StudyResults, tickets: Points, delta: float | None) -> Table:
    rows = []
    for ticket, points in tickets.items():
        names, reference = [ticket.task, ticket.source], score_text(study.scores(ticket))
        rows.append([*names, point_name("0"), reference, *["—"] * 5])
        family = by_rewind_point(study, ticket, points, delta)
        rows += [[*names, point_name(point), *_cells(judged)] for point, judged in family.items()]
    header = ["target", "source", "starts from", "score", "minus θ₀", "90 % interval", "Holm p"]
    return Table("Starting weights compared with θ₀", [*header, "n", "answer"], rows)


def _cells(judged: Judged) -> list[str]:
    comparison, verdict = judged
    return [
        score_text(comparison.subnetwork),
        signed(verdict.difference),
        interval_text(verdict.interval),
        p_texts(verdict)[1],
        n_text(verdict),
        answer_text(verdict),
    ]


def _figure(study: StudyResults, tickets: Points, title: str) -> bytes:
    panels = {}
    for target in dict.fromkeys(ticket.task for ticket in tickets):
        own = {ticket: points for ticket, points in tickets.items() if ticket.task == target}
        starts = _starts(study, target, own)
        by_point = (scores for points in starts.by_source.values() for scores in points.values())
        counts = {len(scores) for scores in by_point} - {0} or {0}
        panels[f"{target}, n = {' or '.join(map(str, sorted(counts)))}"] = starts
    return figures.starting_weights(panels, title)


def _starts(study: StudyResults, target: str, tickets: Points) -> figures.Starts:
    """The scores that are known on a target."""
    by_source = {
        ticket.source: {
            point_name(x): study.scores(ticket._replace(rewind=x)).dropna().to_list()
            for x in ("0", *points)
        }
        for ticket, points in tickets.items()
    }
    unit = " (points)" if metric_named(study.metric(target)).scale == 100 else ""
    baseline, full = study.baseline(target), study.scores(Network(target)).dropna().to_list()
    label = study.metric(target).replace("_", " ") + unit
    return figures.Starts(by_source, full, baseline[1] if baseline else None, label)
