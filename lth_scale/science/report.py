"""Writing the report of a study."""

from pathlib import Path

from lth_scale.config import listing, markdown
from lth_scale.science import html, results, sections


def write(study: results.StudyResults, output: Path, delta: float) -> list[Path]:
    """Write report.html, report.md and the pictures into `output`; `delta` in points. Returns the files.

    Raises FileExistsError where a file of that name is somebody else's, before anything is written.
    """
    made, title = sections.sections(study, delta), f"Report: {study.name}"
    texts = {
        "report.html": html.html(title, study.note, made),
        "report.md": markdown.markdown(title, study.note, made),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {
        name: png for section in made for name, (_, png) in section.pictures.items() if png
    }
    listing.check_listed(output, contents, ("report.html", html.BEGINNING.encode()))
    listing.write_listed(output, contents)
    return [output / name for name in contents]
