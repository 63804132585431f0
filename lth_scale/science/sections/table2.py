"""The paper's Table 2: tickets and their controls."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.matching import RULES
from lth_scale.science.paper import TABLE2, Column, closest_to_table2, paper, printed, sources
from lth_scale.science.results import StudyResults
from lth_scale.science.sections.verdicts import Comparison, highest_matching, verdict_table
from lth_scale.science.texts import percent, score_text, summarize

CAUTION = (
    "A match by welch or paired says only that no loss beyond δ was shown: "
    "few seeds, and Holm, seldom show one."
)
UNKNOWN = Column("")


def table2(study: StudyResults, tasks: Sequence[str], delta: float) -> Section:
    """Scores, verdicts, and the order of the networks, beside the paper's Table 2."""
    planned = {*study.conditions.control, *TABLE2}
    controls = [control for control in CONTROLS if control != "none" and control in planned]
    rows, tickets, orders = [], [], []
    for task in tasks:
        sparsity, text = closest_to_table2(task, study.control_sparsities(task))
        full = study.scores(task)
        subnetworks = [study.scores(task, sparsity, name) for name in ("none", *controls)]
        scores = map(score_text, [full, *subnetworks])
        rows += [[task, "here", study.metric(task), text, *scores], paper_row(task, controls)]
        tickets.append(Comparison([task, percent(sparsity)], subnetworks[0], full))
        orders.append([task, text, *mean_order(task, controls, [full, *subnetworks])])
    names = [TABLE2.get(name, Column(CONTROLS[name].label)).heading for name in controls]
    header = ["task", "", "metric", "sparsity", "full f(θ₀)", "f(m_IMP, θ₀)", *names]
    question = "Is the ticket matching the full network?"
    tables = [
        Table("Scores", header, rows),
        Table("Order of the means", ["task", "sparsity", "here", "paper"], orders),
        verdict_table(question, ["task", "sparsity"], tickets, delta),
        highest_matching(study, tasks, delta),
    ]
    if pairs := [pair for task in tasks for pair in control_comparisons(study, task)]:
        question = "Is a control as good as the ticket?"
        tables.append(verdict_table(question, ["task", "sparsity", "control"], pairs, delta))
    rules = "; ".join(f"{rule}: {meaning}" for rule, meaning in RULES.items())
    known = sources([*paper()["table2"].values(), *paper()["table4_strict_sparsity"].values()])
    title = "The tickets and their controls (the paper's Table 2)"
    return Section(title, [known, f"Rules: {rules}. {CAUTION}"], tables)


def paper_row(task: str, controls: Sequence[str]) -> list[str]:
    """The task's row of the paper's Table 2."""
    row, metric = printed(task), paper()["hyperparameters"][task]["metric"]["value"]
    means = [
        f"{row[f'{key}_mean']:g} ± {row[f'{key}_std']:g} (n = 5)"
        for key in ("full_bert", "f(m_IMP,theta0)")
    ]
    keys = [TABLE2.get(control, UNKNOWN).key for control in controls]
    scores = [f"{row[key]:g}" if key else "—" for key in keys]
    return ["", "paper", metric, f"{row['sparsity']} %", *means, *scores]


def mean_order(
    task: str, controls: Sequence[str], scores: Sequence[pandas.Series]
) -> tuple[str, str]:
    """The networks that both have, by their mean score, best first: here and in the paper.

    scores: of the full network, the ticket and each control.
    """
    keys = {"full": "full_bert_mean", "IMP": "f(m_IMP,theta0)_mean"}
    keys |= {control: TABLE2.get(control, UNKNOWN).key for control in controls}
    means = {name: summarize(values).mean for name, values in zip(keys, scores, strict=True)}
    paper_means = {
        name: printed(task)[key]
        for name, key in keys.items()
        if key and not math.isnan(means[name])
    }
    return ranked({name: means[name] for name in paper_means}), ranked(paper_means)


def ranked(means: Mapping[str, float]) -> str:
    """Names by their means in points, best first; `=` between means that are printed alike."""
    names = sorted(means, key=means.__getitem__, reverse=True)
    if not names:
        return "missing"
    signs = ["=" if f"{means[a]:.1f}" == f"{means[b]:.1f}" else ">" for a, b in pairwise(names)]
    return names[0] + "".join(
        f" {sign} {name}" for sign, name in zip(signs, names[1:], strict=True)
    )


def control_comparisons(study: StudyResults, task: str) -> list[Comparison]:
    """Each control of a task compared with the ticket of its sparsity."""
    rows = study.conditions
    rows = rows[(rows.task == task) & (rows.source == task) & (rows.control != "none")]
    order = [*CONTROLS]
    pairs = {*zip(rows.sparsity, rows.control, strict=True)}
    return [
        Comparison(
            [task, percent(sparsity), CONTROLS[control].label],
            study.scores(task, sparsity, control),
            study.scores(task, sparsity),
        )
        for sparsity, control in sorted(pairs, key=lambda pair: (pair[0], order.index(pair[1])))
    ]
