"""Score against sparsity."""

from collections.abc import Mapping, Sequence

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures
from lth_scale.science.results import StudyResults
from lth_scale.science.texts import score_text

CAPTION = (
    "Means over seeds; bars, and the grey band of the full network, "
    "reach from the least to the greatest seed."
)
NOT_PLANNED = pandas.Series(dtype=float)
Curves = Mapping[str, Mapping[float, pandas.Series]]  # control → sparsity in percent → scores


def curves(study: StudyResults, tasks: Sequence[str]) -> Section:
    """A panel per task with a curve per control, and the same as a table."""
    sparsities = {0.0, *(x for task in tasks for x in study.sparsities(task))}
    columns = sorted(round(100 * sparsity, 6) for sparsity in sparsities)
    text, panels, rows = [CAPTION], {}, []
    for task in tasks:
        by_control = scores_by_control(study, task)
        if missing := _missing(by_control):
            text.append(f"{task}: missing: {', '.join(missing)}.")
        dense = by_control["none"][0.0]
        for control, scores in by_control.items():
            points = ({**scores, 0.0: dense}.get(x, NOT_PLANNED) for x in columns)
            rows.append([task, CONTROLS[control].label, *map(score_text, points)])
        lines = {
            control: {x: points.dropna().to_list() for x, points in scores.items()}
            for control, scores in by_control.items()
        }
        panels[f"{task}, {study.metric(task)} (points)"] = (lines, lines["none"][0.0])
    header = ["task", "network", *map("{:.4g} %".format, columns)]
    title = "Score against sparsity"
    png = figures.scores(panels, figures.SPARSITY, study.title(title))
    table = Table("Scores by sparsity", header, rows)
    return Section(title, text, [table], {"scores.png": ("score against sparsity", png)})


def scores_by_control(study: StudyResults, task: str) -> Curves:
    """Scores of a task's own tickets and their controls, in the order of CONTROLS."""
    rows = study.conditions
    rows = rows[(rows.task == task) & (rows.source == task) & (rows.rewind == "0")]
    planned = {
        control: sorted(rows[rows.control == control].sparsity.unique().tolist())
        for control in CONTROLS
    }
    return {
        control: {round(100 * x, 6): study.scores(task, x, control) for x in sparsities}
        for control, sparsities in planned.items()
        if sparsities
    }


def _missing(by_control: Curves) -> list[str]:
    return [
        f"{CONTROLS[control].label} {x:.4g} %"
        for control, scores in by_control.items()
        for x, points in scores.items()
        if points.isna().all()
    ]
