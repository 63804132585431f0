"""Scores by rewind point."""

import math
from collections.abc import Sequence

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.paper import closest_to_table2
from lth_scale.science.results import StudyResults
from lth_scale.science.sections.verdicts import Comparison, verdict_table
from lth_scale.science.texts import percent, score_text

TEXT = (
    "The ticket trained from θᵢ, i as a part of a round's steps; standard pruning rewinds nothing."
)


def rewinding(study: StudyResults, tasks: Sequence[str], delta: float) -> Section:
    """Tickets of each rewind point, compared with rewinding to θ₀."""
    points = sorted(
        {"0", *study.conditions.rewind},
        key=lambda point: math.inf if point == "none" else float(point),
    )
    rows, comparisons, panels = [], [], {}
    for task in tasks:
        sparsity, text = closest_to_table2(task, study.sparsities(task, rewound=True))
        full = study.scores(task)
        scores = {point: study.scores(task, sparsity, rewind=point) for point in points}
        rows.append([task, text, score_text(full), *map(score_text, scores.values())])
        comparisons += [
            Comparison([task, percent(sparsity), point_name(point)], scores[point], scores["0"])
            for point in points
            if point != "0"
        ]
        line = {point_name(point): values.dropna().to_list() for point, values in scores.items()}
        panels[f"{task}, {percent(sparsity)} (points)"] = ({"none": line}, full.dropna().to_list())
    header = ["task", "sparsity", "full network", *map(point_name, points)]
    labels, question = ["task", "sparsity", "rewind"], "Is it as good as rewinding to θ₀?"
    tables = [
        Table("Scores by rewind point", header, rows),
        verdict_table(question, labels, comparisons, delta),
    ]
    png = figures.scores(panels, "rewind point", study.title("Rewinding"))
    return Section("Rewinding", [TEXT], tables, {"rewinding.png": ("score by rewind point", png)})


def point_name(point: str) -> str:
    """`θ₀`, `5 %`, `100 steps` or `standard pruning`."""
    names = {"0": "θ₀", "none": "standard pruning"}
    return names.get(point) or (percent(float(point)) if float(point) < 1 else f"{point} steps")
