"""The report of a study: its sections, and the files they are written to."""

from pathlib import Path

from lth_scale.config import listing
from lth_scale.config.markdown import Section
from lth_scale.science import pages
from lth_scale.science.results import StudyResults
from lth_scale.science.sections.curves import curves
from lth_scale.science.sections.masks import masks
from lth_scale.science.sections.overview import overview
from lth_scale.science.sections.rewinding import rewinding
from lth_scale.science.sections.table2 import table2
from lth_scale.science.sections.transfer import transfer
from lth_scale.science.sections.verdicts import all_verdicts

# How report.html begins in version 0.1.0, which wrote no list of its files.
BEGINNING = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report: '


def build_sections(study: StudyResults, delta: float) -> list[Section]:
    """The sections for what the study planned; `delta` in percent points."""
    sections = [overview(study)]
    tasks = [task for task in study.tasks if study.sparsities(task)]
    if tasks:
        sections += [table2(study, tasks, delta), curves(study, tasks)]
    transfers = study.transfer_sparsities()
    sections += [transfer(study, sparsity) for sparsity in transfers]
    if rewound := [task for task in study.tasks if study.sparsities(task, rewound=True)]:
        sections.append(rewinding(study, rewound, delta))
    if tasks or transfers:
        sections += [*masks(study), all_verdicts(study, delta)]
    return sections


def write_report(study: StudyResults, output: Path, delta: float) -> list[Path]:
    """Write report.html, report.md, results.csv and the pictures into `output`; return the files.

    delta: in percent points. Raises FileExistsError, before anything is written, if a file of the
    same name was not written by this command.
    """
    sections, title = build_sections(study, delta), f"Report: {study.name}"
    texts = {
        "report.html": pages.html(title, study.note, sections),
        "report.md": pages.markdown(title, study.note, sections),
        "results.csv": study.table.to_csv(index=False),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    for section in sections:
        contents |= {name: png for name, (_, png) in section.pictures.items() if png}
    listing.check_listed(output, contents, ("report.html", BEGINNING.encode()))
    listing.write_listed(output, contents)
    return [output / name for name in contents]
