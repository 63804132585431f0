"""Scores: the paper's Table 2, by sparsity, and by rewind point."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures
from lth_scale.science.matching import RULES
from lth_scale.science.paper import closest_to_table2, paper, printed, sources
from lth_scale.science.results import Network, StudyResults, percent, score_text, summarize
from lth_scale.science.sections.verdicts import (
    READING,
    Comparison,
    Judged,
    by_sparsity,
    flaw_of,
    highest_matching,
    judge,
    point_name,
    verdict_table,
)

CURVES = (
    "Means over seeds. Error bars, and the grey band of the full network, range from the lowest to "
    "the highest seed."
)
REWINDING = (
    "Tickets trained from θᵢ, with i as a fraction of the steps of a round; standard pruning does "
    "not rewind. Verdicts are to be read as under All verdicts; Holm's p is over a task's rewind "
    "points."
)
FAIR_BUDGETS = (
    "Dense networks with the budget of the search are stronger references, not controls that a "
    "ticket should beat: nothing in them is pruned, and they stand beside the ticket of round k "
    "because it has seen k rounds of search. In their rows the ticket is the subnetwork, and the "
    "dense network the reference. The best of k + 1 is chosen by the validation score that it is "
    "given here: an optimistic bound."
)
NOT_PLANNED = pandas.Series(dtype=float)
Curves = dict[str, dict[float, pandas.Series]]  # control → sparsity in percent → scores


# Heading and key in paper.json of each control in Table 2; the paper has no shuffle_within.
TABLE2 = {
    "random_mask": ("f(m_RP, θ₀)", "f(m_RP,theta0)"),
    "reinit": ("f(m_IMP, θ₀′)", "f(m_IMP,theta0')"),
    "shuffle_layers": (
        "f(m_IMP, θ₀″), layers shuffled as in the paper's code",
        "f(m_IMP,theta0'')",
    ),
    "shuffle_within": ("f(m_IMP, θ₀″), shuffled within matrices as in the paper's text", ""),
}


def table2(study: StudyResults, tasks: Sequence[str], delta: float | None) -> Section:
    """Scores, verdicts and the ranking of the networks, beside the paper's Table 2."""
    planned = {*study.conditions.control, *TABLE2}
    controls = [control for control in CONTROLS if control != "none" and control in planned]
    columns = {name: TABLE2.get(name, (CONTROLS[name].label, "")) for name in controls}
    keys = {name: key for name, (_, key) in columns.items()}
    rows, tickets, rankings = [], [], []
    for task in tasks:
        sparsity, text = closest_to_table2(task, study.control_sparsities(task))
        full = study.scores(Network(task))
        subnetworks = [study.scores(Network(task, sparsity, name)) for name in ("none", *controls)]
        scores = [full, *subnetworks]
        ours = [task, "ours", study.metric(task), text, *map(score_text, scores)]
        rows += [ours, _paper_row(task, keys)]
        judged = by_sparsity(study, Network(task), delta)[sparsity]
        tickets.append(([task, percent(sparsity)], judged))
        rankings.append([task, text, *_rankings(task, keys, scores)])
    header = ["task", "study", "metric", "sparsity", "full network", "f(m_IMP, θ₀)"]
    header += [heading for heading, _ in columns.values()]
    title, labels = "Tickets compared with the full network", ["task", "sparsity"]
    tables = [
        Table("Scores", header, rows),
        Table("Ranking by mean score", ["task", "sparsity", "ours", "paper"], rankings),
        verdict_table(title, labels, tickets),
        highest_matching(study, tasks, delta),
    ]
    if pairs := [pair for task in tasks for pair in _control_comparisons(study, task, delta)]:
        title = "Controls compared with the ticket"
        tables.append(verdict_table(title, [*labels, "control"], pairs))
    rules = "; ".join(f"{rule}: {meaning}" for rule, meaning in RULES.items())
    known = sources([*paper()["table2"].values(), *paper()["table4_strict_sparsity"].values()])
    texts = [known, READING, f"The paper's rules: {rules}."]
    if any(CONTROLS[name].budget for name in controls):
        texts.append(FAIR_BUDGETS)
    return Section("Tickets and controls (the paper's Table 2)", texts, tables)


def _paper_row(task: str, keys: Mapping[str, str]) -> list[str]:
    """The task's row of the paper's Table 2; keys: its columns in paper.json by control."""
    row, metric = printed(task), paper()["hyperparameters"][task]["metric"]["value"]
    means = [
        f"{row[f'{key}_mean']:g} ± {row[f'{key}_std']:g} (n = 5)"
        for key in ("full_bert", "f(m_IMP,theta0)")
    ]
    scores = [f"{row[key]:g}" if key else "—" for key in keys.values()]
    return ["", "paper", metric, f"{row['sparsity']} %", *means, *scores]


def _rankings(
    task: str, controls: Mapping[str, str], scores: Sequence[pandas.Series]
) -> tuple[str, str]:
    """The ranking, here and in the paper, of the networks for which both have a mean.

    scores: of the full network, the ticket and each control.
    """
    keys = {"full": "full_bert_mean", "IMP": "f(m_IMP,theta0)_mean", **controls}
    means = {name: summarize(values).mean for name, values in zip(keys, scores, strict=True)}
    both = [name for name, key in keys.items() if key and not math.isnan(means[name])]
    papers = {name: printed(task)[keys[name]] for name in both}
    return ranked({name: means[name] for name in both}), ranked(papers)


def ranked(means: Mapping[str, float]) -> str:
    """Names by their means in points, best first; `=` between means with equal text."""
    names = sorted(means, key=means.__getitem__, reverse=True)
    texts = {name: f"{means[name]:.1f}" for name in names}
    others = [f" {'=' if texts[a] == texts[b] else '>'} {b}" for a, b in pairwise(names)]
    return "".join([*names[:1], *others]) or "missing"


def _control_comparisons(
    study: StudyResults, task: str, delta: float | None
) -> list[tuple[list[str], Judged]]:
    """Each control of a task and the ticket of the same sparsity; a family for each control."""
    by_control, metric = _scores_by_control(study, task), study.metric(task)
    tickets = by_control.pop("none")
    fractions = {round(100 * x, 6): x for x in study.conditions.sparsity.unique().tolist()}
    rows: list[tuple[float, str, Judged]] = []
    for control, scores in by_control.items():
        pairs = [(points, tickets.get(x, NOT_PLANNED)) for x, points in scores.items()]
        if CONTROLS[control].budget:  # a stronger reference, with which the ticket is compared
            pairs = [(ticket, points) for points, ticket in pairs]
        comparisons = [Comparison(sub, reference, metric) for sub, reference in pairs]
        planned = [fractions[x] for x in scores]
        flaws = [
            flaw_of(study, Network(task, x)) or flaw_of(study, Network(task, x, control))
            for x in planned
        ]
        judged = zip(scores, judge(comparisons, delta, flaws), strict=True)
        rows += [(x, CONTROLS[control].label, verdict) for x, verdict in judged]
    rows.sort(key=lambda row: row[0])
    return [([task, f"{x:.4g} %", label], judged) for x, label, judged in rows]


def curves(study: StudyResults, tasks: Sequence[str]) -> Section:
    """Score against sparsity: a panel per task with a curve per control, and a table."""
    sparsities = {0.0, *(x for task in tasks for x in study.sparsities(task))}
    columns = sorted(round(100 * sparsity, 6) for sparsity in sparsities)
    text, panels, rows, trivial = [CURVES], {}, [], {}
    for task in tasks:
        by_control = _scores_by_control(study, task)
        missing = [
            f"{CONTROLS[control].label} {x:.4g} %"
            for control, scores in by_control.items()
            for x, points in scores.items()
            if points.isna().all()
        ]
        if missing:
            text.append(f"{task}: missing: {', '.join(missing)}.")
        dense = by_control["none"][0.0]
        for control, scores in by_control.items():
            points = ({**scores, 0.0: dense}.get(x, NOT_PLANNED) for x in columns)
            rows.append([task, CONTROLS[control].label, *map(score_text, points)])
        lines = {
            control: {x: points.dropna().to_list() for x, points in scores.items()}
            for control, scores in by_control.items()
        }
        panel = f"{task}, {study.metric(task)} (points)"
        panels[panel] = (lines, lines["none"][0.0])
        if baseline := study.baseline(task):
            trivial[panel] = baseline[1]
    header = ["task", "network", *map("{:.4g} %".format, columns)]
    title = "Score against sparsity"
    png = figures.scores(panels, figures.SPARSITY, study.title(title), trivial)
    table = Table("Scores by sparsity", header, rows)
    return Section(title, text, [table], {"scores.png": ("score against sparsity", png)})


def _scores_by_control(study: StudyResults, task: str) -> Curves:
    """Scores of a task's own tickets and their controls, in the order of CONTROLS."""
    rows = study.conditions
    rows = rows[(rows.task == task) & (rows.source == task) & (rows.rewind == "0")]
    return {
        control: {
            round(100 * x, 6): study.scores(Network(task, x, control))
            for x in sorted(rows[rows.control == control].sparsity.unique().tolist())
        }
        for control in CONTROLS
        if control in {*rows.control}
    }


def rewinding(study: StudyResults, tasks: Sequence[str], delta: float | None) -> Section:
    """Tickets of each rewind point, compared with rewinding to θ₀."""
    points = sorted(
        {"0", *study.conditions.rewind},
        key=lambda point: math.inf if point == "none" else float(point),
    )
    rows, panels = [], {}
    comparisons: list[tuple[list[str], Judged]] = []
    for task in tasks:
        sparsity, text = closest_to_table2(task, study.sparsities(task, rewound=True))
        full = study.scores(Network(task))
        networks = {point: Network(task, sparsity, rewind=point) for point in points}
        scores = {point: study.scores(network) for point, network in networks.items()}
        rows.append([task, text, score_text(full), *map(score_text, scores.values())])
        others = [point for point in points if point != "0"]
        metric = study.metric(task)
        flaw = flaw_of(study, networks["0"])
        flaws = [flaw or flaw_of(study, networks[point]) for point in others]
        family = judge([Comparison(scores[x], scores["0"], metric) for x in others], delta, flaws)
        labelled = ([task, percent(sparsity), point_name(point)] for point in others)
        comparisons += zip(labelled, family, strict=True)
        line = {point_name(point): values.dropna().to_list() for point, values in scores.items()}
        panels[f"{task}, {percent(sparsity)} (points)"] = ({"none": line}, full.dropna().to_list())
    header = ["task", "sparsity", "full network", *map(point_name, points)]
    labels, title = ["task", "sparsity", "rewind point"], "Rewind points compared with θ₀"
    tables = [
        Table("Scores by rewind point", header, rows),
        verdict_table(title, labels, comparisons),
    ]
    png = figures.scores(panels, "rewind point", study.title("Rewinding"))
    pictures = {"rewinding.png": ("score by rewind point", png)}
    return Section("Rewinding", [REWINDING], tables, pictures)
