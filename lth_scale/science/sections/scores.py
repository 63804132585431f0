"""Scores: whether tickets match, the paper's Table 2, by sparsity, and by rewind point."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures
from lth_scale.science.matching import RULES, interval_text, short_answer, signed
from lth_scale.science.paper import closest_to_table2, paper, printed, sources
from lth_scale.science.results import (
    NOT_PLANNED,
    Network,
    StudyResults,
    percent,
    score_text,
    short_score,
    summarize,
)
from lth_scale.science.sections.verdicts import (
    ANSWERS,
    READING,
    Comparison,
    Judged,
    by_rewind_point,
    by_sparsity,
    flaw_of,
    highest_matching,
    in_order,
    judge,
    point_name,
    sparsities_with,
    verdict_table,
)
from lth_scale.tasks.registry import metric_named

MATCHING = (
    "The difference is ticket − full network at the highest sparsity that matches, or else at the "
    "lowest sparsity, with its 90 % interval. It matches if a loss of δ or more is rejected."
)
TABLE2_TITLE = "Scores of the full network, the tickets and their controls"
TABLE2_READING = (
    "Each cell is mean ± standard deviation over seeds. The answer of a ticket is its comparison "
    "with the full network, that of a control its comparison with the ticket."
)
CURVES = (
    "Means over seeds. As in the tables, error bars and the grey band of the full network are one "
    "sample standard deviation (n − 1 in the denominator) to each side; a single seed has none. "
    "n counts the seeds of a mean. Controls are drawn beside their sparsity. In panels of the same "
    "metric, a difference has the same height."
)
REWINDING = (
    "Tickets trained from θᵢ, with i as a fraction of the steps of a round; standard pruning does "
    "not rewind. The answer compares each with rewinding to θ₀ (Holm's p is over a task's rewind "
    "points)."
)
FAIR_BUDGETS = (
    "Dense networks with the budget of the search are stronger references, not controls that a "
    "ticket should beat: nothing in them is pruned, and they stand beside the ticket of round k "
    "because it has seen k rounds of search. Where they are compared, the ticket is the subnetwork "
    "and the dense network the reference. The best of k + 1 is chosen by the "
    "validation score that it is given here: an optimistic bound."
)
Curves = dict[str, dict[float, pandas.Series]]  # control → sparsity in percent → scores


class ControlRow(NamedTuple):
    """A control compared with the ticket of its sparsity."""

    task: str
    sparsity: float
    control: str
    judged: Judged

    @property
    def labels(self) -> list[str]:
        """The first cells of its row in a table."""
        return [self.task, percent(self.sparsity), CONTROLS[self.control].label]


# Heading and key in paper.json of each control in Table 2; the paper has no shuffle_within.
TABLE2 = {
    "random_mask": ("random mask", "f(m_RP,theta0)"),
    "reinit": ("ticket on θ₀′", "f(m_IMP,theta0')"),
    "shuffle_layers": ("ticket on θ₀″, layers shuffled", "f(m_IMP,theta0'')"),
    "shuffle_within": ("ticket on θ₀″, shuffled within matrices", ""),
}


def matching(study: StudyResults, tasks: Sequence[str], delta: float | None) -> Section:
    """Which sparsities match the full network, by task."""
    rows = [_matching_row(study, task, delta) for task in tasks]
    header = ["task", "full network", "trivial", *(f"{answer} at" for answer in ANSWERS)]
    header += ["difference", "further seeds"]
    known = paper()["table4_strict_sparsity"].values()
    rules = "; ".join(f"{rule}: {meaning}" for rule, meaning in RULES.items())
    return Section(
        "Do the tickets match the full network?",
        [MATCHING],
        [Table("", header, rows)],
        reading=[READING, f"The paper's rules: {rules}."],
        details=[highest_matching(study, tasks, delta)],
        sources=sources([*paper()["table2"].values(), *known]),
    )


def _matching_row(study: StudyResults, task: str, delta: float | None) -> list[str]:
    judged = by_sparsity(study, Network(task), delta)
    by_answer = {answer: sparsities_with(judged, answer) for answer in ANSWERS}
    highest = max(by_answer["matches"], default=min(judged))
    verdict, digits = judged[highest].verdict, metric_named(study.metric(task)).digits + 1
    seeds = [x.verdict.more_seeds for x in judged.values() if x.verdict.more_seeds]
    return [
        f"{task} ({study.metric(task)})",
        score_text(study.scores(Network(task))),
        study.trivial_text(task),
        *(spans(x, [*judged]) or "—" for x in by_answer.values()),
        f"{signed(verdict.difference, digits)} {interval_text(verdict.interval, digits)} at "
        f"{percent(highest)}",
        f"up to {max(seeds)}" if seeds else "—",
    ]


def table2(study: StudyResults, tasks: Sequence[str], delta: float | None) -> Section:
    """Scores and answers of the networks beside the paper's Table 2, and their ranking."""
    planned = {*study.conditions.control, *TABLE2}
    controls = [control for control in CONTROLS if control != "none" and control in planned]
    columns = {name: TABLE2.get(name, (CONTROLS[name].label, "")) for name in controls}
    keys = {name: key for name, (_, key) in columns.items()}
    comparisons = [row for task in tasks for row in control_comparisons(study, task, delta)]
    rows, rankings = [], []
    for task in tasks:
        rows.append(_our_row(study, task, delta, controls, comparisons))
        rows += [_paper_row(task, keys)] if printed(task) else []
        rankings.append(_rankings(study, task, keys))
    header = ["task", "study", "sparsity", "n", "trivial", "full network", "ticket"]
    header += [heading for heading, _ in columns.values()]
    details = [Table("Ranking by mean score", ["task", "sparsity", "ours", "paper"], rankings)]
    if comparisons:
        title, labels = "Controls compared with the ticket", ["task", "sparsity", "control"]
        pairs = [(row.labels, row.judged) for row in comparisons]
        details.append(verdict_table(study, title, labels, pairs))
    budgets = [FAIR_BUDGETS] if any(CONTROLS[name].budget for name in controls) else []
    texts = [TABLE2_READING, *budgets]
    return Section(
        "Do the mask and θ₀ matter? (the paper's Table 2)",
        texts,
        [Table(TABLE2_TITLE, header, rows)],
        reading=[READING],
        details=details,
        sources=sources(paper()["table2"].values()),
    )


def _our_row(
    study: StudyResults,
    task: str,
    delta: float | None,
    controls: Sequence[str],
    comparisons: Sequence[ControlRow],
) -> list[str]:
    """The task's row of Table 2 in this study."""
    sparsity, text = closest_to_table2(task, study.control_sparsities(task))
    full = study.scores(Network(task))
    scores = {x: study.scores(Network(task, sparsity, x)) for x in ("none", *controls)}
    judged = {"none": by_sparsity(study, Network(task), delta)[sparsity]}
    judged |= {
        row.control: row.judged
        for row in comparisons
        if row[:2] == (task, sparsity) and not CONTROLS[row.control].budget
    }
    n = max(map(len, (full, *scores.values())))
    cells = [answered(values, n, judged.get(name)) for name, values in scores.items()]
    return [task, "ours", text, str(n), study.trivial_text(task), short_score(full, n), *cells]


def spans(chosen: Sequence[float], tested: Sequence[float]) -> str:
    """Sparsities as text; three or more in a row of those tested as `20 to 60 %`."""
    runs: list[list[float]] = []
    for sparsity in tested:
        if sparsity not in chosen:
            runs.append([])
        else:
            runs = [*runs[:-1], [*runs[-1], sparsity]] if runs else [[sparsity]]
    texts = (
        [f"{100 * run[0]:.4g} to {percent(run[-1])}"] if len(run) > 2 else map(percent, run)
        for run in runs
    )
    return ", ".join(chain.from_iterable(texts))


def answered(scores: pandas.Series, n: int, judged: Judged | None) -> str:
    """`82.6 ± 0.2, worse`; n: as in `short_score`."""
    text = short_score(scores, n)
    return f"{text}, {short_answer(judged.verdict)}" if judged and scores.count() else text


def _paper_row(task: str, keys: Mapping[str, str]) -> list[str]:
    """The task's row of the paper's Table 2; keys: its columns in paper.json by control."""
    row = printed(task)
    means = [
        f"{row[f'{key}_mean']:g} ± {row[f'{key}_std']:g}"
        for key in ("full_bert", "f(m_IMP,theta0)")
    ]
    scores = [f"{row[key]:g}" if key else "—" for key in keys.values()]
    return ["", "paper", f"{row['sparsity']} %", "5", "—", *means, *scores]


def _rankings(study: StudyResults, task: str, controls: Mapping[str, str]) -> list[str]:
    """The ranking, here and in the paper, of the networks for which both have a mean.

    Of a task that the paper does not have, the ranking here of those that it has for others.
    controls: as `keys` of `_paper_row`.
    """
    sparsity, text = closest_to_table2(task, study.control_sparsities(task))
    networks = {"full": Network(task), "IMP": Network(task, sparsity)}
    networks |= {name: Network(task, sparsity, name) for name in controls}
    keys = {"full": "full_bert_mean", "IMP": "f(m_IMP,theta0)_mean", **controls}
    means = {name: summarize(study.scores(network)).mean for name, network in networks.items()}
    both = [name for name, key in keys.items() if key and not math.isnan(means[name])]
    row, sign = printed(task), metric_named(study.metric(task)).sign
    papers = ranked({name: row[keys[name]] for name in both}) if row else "—"
    return [task, text, ranked({name: sign * means[name] for name in both}), papers]


def ranked(means: Mapping[str, float]) -> str:
    """Names by their means in points, the highest first; `=` between means with equal text."""
    names = sorted(means, key=means.__getitem__, reverse=True)
    texts = {name: f"{means[name]:.1f}" for name in names}
    others = [f" {'=' if texts[a] == texts[b] else '>'} {b}" for a, b in pairwise(names)]
    return "".join([*names[:1], *others]) or "missing"


def control_comparisons(study: StudyResults, task: str, delta: float | None) -> list[ControlRow]:
    """Each control of a task and the ticket of the same sparsity; a family for each control."""
    by_control, metric = _scores_by_control(study, task), study.metric(task)
    tickets = by_control.pop("none")
    fractions = {round(100 * x, 6): x for x in study.conditions.sparsity.unique().tolist()}
    rows = []
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
        judged = judge(comparisons, delta, flaws)
        rows += [ControlRow(task, x, control, y) for x, y in zip(planned, judged, strict=True)]
    return sorted(rows, key=lambda row: row.sparsity)


def curves(study: StudyResults, tasks: Sequence[str]) -> Section:
    """Score against sparsity: a panel per task with a curve per control, and a table."""
    sparsities = {0.0, *(x for task in tasks for x in study.sparsities(task))}
    columns = sorted(round(100 * sparsity, 6) for sparsity in sparsities)
    text, panels, rows = [CURVES], {}, []
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
            label = CONTROLS[control].label
            rows.append([task, label, study.trivial_text(task), *map(score_text, points)])
        lines = {
            control: {x: points.dropna().to_list() for x, points in scores.items()}
            for control, scores in by_control.items()
        }
        panels[task] = _panel(study, task, lines, dense)
    header = ["task", "network", "trivial", *map("{:.4g} %".format, columns)]
    title = "Score against sparsity"
    picture = figures.scores(panels, figures.SPARSITY, study.title(title))
    caption = "Score against sparsity, mean ± sample standard deviation over n seeds"
    return Section(
        "How does the score fall with sparsity?",
        text,
        pictures={"scores.png": (caption, picture)},
        details=[Table("Scores by sparsity", header, rows)],
    )


def _panel(
    study: StudyResults, task: str, lines: figures.Lines, full: pandas.Series
) -> figures.Panel:
    metric, best = study.metric(task), study.baseline(task)
    return figures.Panel(lines, full.dropna().to_list(), metric, best and best[1])


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
    own = study.conditions[study.conditions.source == study.conditions.task]
    points = in_order(["0", *own.rewind])
    rows, panels = [], {}
    comparisons: list[tuple[list[str], Judged]] = []
    for task in tasks:
        sparsity, text = closest_to_table2(task, study.sparsities(task, rewound=True))
        full = study.scores(Network(task))
        ticket = Network(task, sparsity)
        scores = {point: study.scores(ticket._replace(rewind=point)) for point in points}
        judged = by_rewind_point(study, ticket, points[1:], delta)
        comparisons += [
            ([task, percent(sparsity), point_name(x)], verdict) for x, verdict in judged.items()
        ]
        n = max(len(x) for x in scores.values())
        cells = [answered(x, n, judged.get(point)) for point, x in scores.items()]
        start = [task, text, str(n), study.trivial_text(task), short_score(full, n)]
        rows.append([*start, *cells])
        line = {point_name(point): values.dropna().to_list() for point, values in scores.items()}
        panels[f"{task}, {percent(sparsity)}"] = _panel(study, task, {"none": line}, full)
    header = ["task", "sparsity", "n", "trivial", "full network", *map(point_name, points)]
    labels, title = ["task", "sparsity", "rewind point"], "Rewind points compared with θ₀"
    picture = figures.scores(panels, "rewind point", study.title("Rewinding"))
    caption = "Score by rewind point, mean ± sample standard deviation over n seeds"
    return Section(
        "Does rewinding help?",
        [REWINDING],
        [Table("Scores by rewind point", header, rows)],
        {"rewinding.png": (caption, picture)},
        reading=[READING],
        details=[verdict_table(study, title, labels, comparisons)],
    )
