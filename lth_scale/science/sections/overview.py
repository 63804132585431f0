"""What a study planned and what is finished."""

from lth_scale.config.markdown import Section, Table
from lth_scale.science.paper import paper
from lth_scale.science.results import StudyResults

ONE_SEED = "With one seed there is no spread: a rule that needs one says “cannot be told”."
WNLI = (
    "WNLI is at chance by design (its validation contradicts its training): "
    "no comparison on it means anything."
)


def overview(study: StudyResults) -> Section:
    """Model, tasks and seeds; the jobs and trainings that are missing; starved matrices."""
    seeds = sorted(study.conditions.seed.unique())
    unfinished = [job for job, finished in study.finished.items() if not finished]
    text = [
        f"Model: {study.model}. Tasks: {', '.join(study.tasks)}. "
        f"Seeds: {', '.join(map(str, seeds))}. Scores are in percent points; ± is one standard "
        "deviation over seeds (n − 1 in the denominator), n the number of seeds. "
        f"The paper is {paper()['paper']}.",
        f"Jobs: {len(study.finished)} planned, {len(unfinished)} not finished: "
        f"{', '.join(unfinished) or 'none'}.",
    ]
    text += [ONE_SEED] * (len(seeds) < 2) + [WNLI] * ("wnli" in study.tasks)
    tables = [trainings(study)]
    if study.starved:
        title = "Little or nothing passes through some matrices"
        tables.append(Table(title, ["job", "of", "what its mask leaves"], study.starved))
    return Section("Summary", text, tables)


def trainings(study: StudyResults) -> Table:
    """How many trainings of each kind are planned, present and missing."""
    by_network = study.conditions.groupby("network", sort=False).value
    counts = [(name, len(values), values.count()) for name, values in by_network]
    counts.append(("all", len(study.conditions), study.conditions.value.count()))
    rows = [
        [name, str(planned), str(there), str(planned - there)] for name, planned, there in counts
    ]
    return Table("Trainings", ["what", "planned", "there", "missing"], rows)
