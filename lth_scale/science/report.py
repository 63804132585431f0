"""The report of a study: its sections, and the files they are written to."""

from collections.abc import Iterator
from pathlib import Path

from lth_scale.config import manifest
from lth_scale.config.markdown import Section, Table, markdown_table
from lth_scale.science import pages
from lth_scale.science.flaws import PREDICTORS
from lth_scale.science.paper import paper
from lth_scale.science.results import Network, StudyResults, percent
from lth_scale.science.sections.answer import answer
from lth_scale.science.sections.masks import masks
from lth_scale.science.sections.scores import TABLE2_TITLE, curves, matching, rewinding, table2
from lth_scale.science.sections.starting_weights import starting_weights
from lth_scale.science.sections.transfer import sources_of, transfer
from lth_scale.science.sections.transferability import transferability
from lth_scale.science.sections.verdicts import (
    all_verdicts,
    by_sparsity,
    families,
    network_name,
    own_flaw,
    with_verdicts,
)
from lth_scale.tasks.registry import metric_named

# The beginning of report.html in version 0.1.0, which wrote no list of its files.
BEGINNING = b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report: '


def build_sections(study: StudyResults, delta: float | None) -> list[Section]:
    """The sections for the experiments that the study planned, each a question; details folded.

    delta: the loss that matching tolerates, in the unit printed; None for each metric's default.
    """
    sections = []
    tasks = [task for task in study.tasks if study.sparsities(task)]
    if tasks:
        sections += [matching(study, tasks, delta), table2(study, tasks, delta)]
        sections.append(curves(study, tasks))
    transfers = study.transfer_sparsities()
    for sparsity in transfers:
        sections.append(transfer(study, sparsity))
        if len(sources_of(study, sparsity)) > 1:  # nothing to compare otherwise
            sections.append(transferability(study, sparsity))
    rewound_sparsities = sorted({network.sparsity for network in study.rewound_transfers()})
    sections += [starting_weights(study, sparsity, delta) for sparsity in rewound_sparsities]
    if rewound := [task for task in study.tasks if study.sparsities(task, rewound=True)]:
        sections.append(rewinding(study, rewound, delta))
    if tasks or transfers:
        sections += masks(study)
    sections.append(_trainings(study))
    return [*sections, all_verdicts(study, delta)] if tasks or transfers else sections


def _trainings(study: StudyResults) -> Section:
    """What was trained and what is missing, and the networks that did not learn."""
    seeds = sorted(study.conditions.seed.unique())
    text = [
        f"Model: {_readable(study.model)}. Seeds: {', '.join(map(str, seeds))}. Scores are in "
        f"{_unit(study)}; ± is one standard deviation over seeds (n − 1 in the denominator), n "
        f"the number of seeds. “The paper” is {paper()['paper']}.",
        f"Jobs: {len(study.states)} planned, {_states(study)}.",
    ]
    by_network = study.conditions.groupby("network", sort=False).value
    rows = [
        [name, str(len(values)), str(values.count()), str(values.isna().sum())]
        for name, values in [*by_network, ("total", study.conditions.value)]
    ]
    trainings = Table("Training runs", ["network", "planned", "finished", "missing"], rows)
    details = []
    baselines = [
        [task, study.metric(task), PREDICTORS.get(best[0], best[0]), study.trivial_text(task)]
        for task in study.tasks
        if (best := study.baseline(task))
    ]
    if baselines:
        header = ["task", "metric", "best trivial predictor", "score"]
        details.append(Table("Trivial baselines", header, baselines))
    if flaws := [*_flawed_networks(study), *_starved_networks(study)]:
        header = ["task", "network", "sparsity", "flaw"]
        details.append(Table("Dead, untrained and starved networks", header, flaws))
        text.append(f"Dead, untrained or starved networks: {len(flaws)}, listed in the details.")
    reading = [f"{state.capitalize()}: {', '.join(x)}." for state, x in study.unfinished.items()]
    title = "What was trained, and what is missing?"
    return Section(title, text, [trainings], reading=reading, details=details)


def _states(study: StudyResults) -> str:
    """`3 not finished (1 running, 2 not started)`."""
    unfinished = study.unfinished
    counts = ", ".join(f"{len(jobs)} {state}" for state, jobs in unfinished.items())
    is_detailed = bool(unfinished.keys() - {"not finished"})
    return f"{sum(map(len, unfinished.values()))} not finished" + f" ({counts})" * is_detailed


def _unit(study: StudyResults) -> str:
    """`percentage points`, and which metrics have another unit."""
    metrics = sorted({*study.table.metric})
    others = [name for name in metrics if metric_named(name).scale != 100]
    return "percentage points" + f" ({', '.join(others)}: in its own unit)" * bool(others)


def _readable(model: str) -> str:
    """The names of the models, without the directories of local ones."""
    names = (
        name.rstrip("/").split("/")[-1] if name.startswith(("/", ".", "~")) else name
        for name in model.split(", ")
    )
    return ", ".join(dict.fromkeys(names))


def _flawed_networks(study: StudyResults) -> Iterator[list[str]]:
    """A row for each network that is dead or untrained."""
    for task in study.tasks:
        if flaw := own_flaw(study, Network(task)):
            yield [task, "full network", "0 %", flaw]
    for family in families(study):
        for sparsity in by_sparsity(study, family, None):
            if flaw := own_flaw(study, family._replace(sparsity=sparsity)):
                yield [family.task, network_name(family), percent(sparsity), flaw]


def _starved_networks(study: StudyResults) -> Iterator[list[str]]:
    """A row for each network with a nearly empty matrix, which may still get a verdict."""
    for job, stage, description in study.starved:
        yield ["—", f"{job}, {stage}", "—", f"starved: {description}"]


def write_report(study: StudyResults, output: Path, delta: float | None) -> list[Path]:
    """Write the report, its figures, results.csv and Table 2 into `output`; return their paths.

    delta: as in `build_sections`. Raises FileExistsError, before anything is written, if a file of
    the same name was not written by this command.
    """
    sections, title = build_sections(study, delta), f"Report: {study.name}"
    page = (title, study.note, sections, answer(study, delta))
    texts = {
        "report.html": pages.html(*page),
        "report.md": pages.markdown(*page),
        "results.csv": with_verdicts(study, delta).to_csv(index=False),
    }
    for table in (table for section in sections for table in section.tables):
        if table.title == TABLE2_TITLE:
            texts |= {"table2.md": f"{markdown_table(table)}\n", "table2.tex": pages.latex(table)}
    contents = {name: text.encode() for name, text in texts.items()}
    for section in sections:
        for name, (_, picture) in section.pictures.items():
            contents |= picture.files(name)
    manifest.check_listed(output, contents, ("report.html", BEGINNING))
    manifest.write_listed(output, contents)
    return [output / name for name in contents]
