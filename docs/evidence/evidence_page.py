"""Write docs/evidence.md from `page.in` and the results beside it, so that no number is typed.

`python -m lth_scale.report RUN --save docs/evidence/NAME.json` saves what a report needs of a
study. Jobs that the file has and RUN has not stay in it, so that a study may run in parts, on
several machines. `python docs/evidence/evidence_page.py` renders the page. It is a Jinja2
template, in which NAME stands for NAME.json, and with a `*` for all such files together:

* `{{ table(NAME, title) }}` is the table whose title begins so, `{{ picture(NAME, file) }}` a
  picture of the report, each with how they were made;
* `{{ score(NAME, task, sparsity, control, source) }}` is mean ± sd and n (without a control: the
  ticket; at 0: the full network), `{{ highest(NAME, task) }}` the highest sparsity that
  matches (with a rule of the paper: by that one), `{{ minutes(NAME, job) }}` how long a job's
  trainings took;
* `{{ measured(NAME) }}` is the table of a file of measurements, `{{ value(NAME, what) }}` the
  median of one of them;
* `{{ speed(NAME) }}` are the tables of a speed.json of `lth_scale.speed`, `{{ times(NAME,
  engine) }}` the ratios of one engine.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import speed_tables
from jinja2 import Environment, StrictUndefined, TemplateError

from lth_scale.config import files, manifest
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import LABEL, Section, Table, literal, markdown_table
from lth_scale.config.texts import quoted
from lth_scale.science.report import build_sections
from lth_scale.science.results import (
    DAMAGE,
    STATES,
    Network,
    StudyResults,
    score_text,
    study_results,
)
from lth_scale.science.saved import EXAMPLES, MASKS
from lth_scale.science.sections.verdicts import highest_by_rule, highest_match
from lth_scale.science.study_record import parse_record
from lth_scale.tasks.registry import TASKS


@cache
def read(path: Path) -> dict[str, Any]:
    """A file of results. Raises BadInput."""
    try:
        return files.read_json(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{path}: cannot be read ({problem}); "
            f"write it with lth_scale.report RUN --save {quoted(path)}"
        ) from None


@cache
def study(path: Path) -> StudyResults:
    """A saved study; with a `*` in the name, all such files together, each with its own tasks."""
    parts = [read(file) for file in sorted(path.parent.glob(path.name)) or [path]]
    try:
        return combine(path, parts)
    except DAMAGE as problem:
        raise BadInput(
            f"{path}: not a file of lth_scale.report --save ({problem!r}); write it again"
        ) from problem


def combine(path: Path, parts: Sequence[dict[str, Any]]) -> StudyResults:
    """Saved studies as one, with the tasks in their usual order."""
    plans = [part["plan"] for part in parts]
    rows = {job: results for part in parts for job, results in part["rows"].items()}
    plan = plans[0] | {
        "name": path.stem,
        "tasks": [task for task in TASKS if any(task in plan["tasks"] for plan in plans)],
        "jobs": list({job["id"]: job for plan in plans for job in plan["jobs"]}.values()),
        "cells": [cell for plan in plans for cell in plan["cells"]],
    }
    finished = {job for part in parts for job in part["finished"]}
    states = {job: STATES[0] if job in finished else STATES[-1] for job in rows}
    facts = [part["masks"] for part in parts]
    merged = {
        key: dict(chain.from_iterable(one.get(key, {}).items() for one in facts)) for key in MASKS
    }
    saved = [part.get("examples", {}) for part in parts]  # which earlier versions did not save
    examples = {
        key: dict(chain.from_iterable(one.get(key, {}).items() for one in saved))
        for key in EXAMPLES
    }
    record = parse_record(plan)
    return study_results(record, rows, states, path.parent, facts[0] | merged, examples)


@cache
def sections(path: Path) -> list[Section]:
    """The report of a saved study."""
    return build_sections(study(path), None)


def made_by(path: Path) -> str:
    """With which commands the files of a name were made, and what has not been started."""
    saved = {file.stem: read(file) for file in sorted(path.parent.glob(path.name))}
    started = {
        name: part["made"]
        for name, part in saved.items()
        if "plan" not in part or any(part["rows"].values())
    }
    lines = [speed_tables.made_by(**made) for made in started.values()]
    if later := [literal(name) for name in saved if name not in started]:
        lines.append(f"Not begun: {', '.join(later)}.")
    return speed_tables.small(lines)


def table(path: Path, title: str) -> str:
    """The table of a study's report whose title begins with `title`, and how it was made."""
    tables = (table for section in sections(path) for table in (*section.tables, *section.details))
    match = next((table for table in tables if table.title.startswith(title)), None)
    if match is None:
        raise BadInput(f"{path}: has no table {title!r}; use a title of lth_scale.report's page")
    return f"{markdown_table(match)}\n\n{made_by(path)}"


def picture(path: Path, name: str) -> str:
    """A picture of a study's report, written beside the results, and how it was made."""
    pictures = {
        file: picture for section in sections(path) for file, picture in section.pictures.items()
    }
    if name not in pictures:
        raise BadInput(f"{path}: has no picture {name!r}; use one of {', '.join(pictures)}")
    (caption, drawn), prefix = pictures[name], path.stem.replace("*", "all")
    if not drawn.png:
        raise BadInput(f"{path}: its picture {name!r} cannot be drawn; see the warning above")
    write_own(path.parent, f"{prefix}-{name}", drawn.png)
    label = literal(f"{prefix}: {caption}", LABEL)
    return f"![{label}]({path.parent.name}/{prefix}-{name})\n\n{made_by(path)}"


def write_own(folder: Path, name: str, content: bytes) -> Path:
    """Write the page or a picture. Raises BadInput if another file has its name."""
    path, known = folder / name, manifest.listed(folder)
    foreign = os.path.lexists(path) or manifest.is_foreign(folder / manifest.LISTING)
    if name not in known and foreign:
        raise BadInput(
            f"{path}: exists and was not written from {folder / 'page.in'}; move it away"
        )
    manifest.write_listing(folder, {*known, name})
    files.write_bytes(path, content)
    return path


def score(path: Path, task: str, sparsity: float, control: str = "none", source: str = "") -> str:
    """Mean ± sd and n of one network, in percent points."""
    return score_text(study(path).scores(Network(task, float(sparsity), control, source)))


def highest(path: Path, task: str, rule: str | None = None) -> str:
    """The highest sparsity that matches, by the verdict or a rule of the paper, or `none`."""
    return (
        highest_by_rule(study(path), task)[rule] if rule else highest_match(study(path), task, None)
    )


def measured(path: Path) -> str:
    """A file of measurements as a table."""
    rows = [
        [row["what"], spread(row["values"]), row["unit"], str(len(row["values"]))]
        for row in read(path)["rows"]
    ]
    header = ["what", "median [least, greatest]", "unit", "n"]
    return f"{markdown_table(Table('', header, rows))}\n\n{made_by(path)}"


def spread(values: Sequence[float]) -> str:
    """`3 [1, 8]`: median, least and greatest; a single value alone."""
    middle, least, greatest = (
        f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (median(values), min(values), max(values))
    )
    return f"{middle} [{least}, {greatest}]" if len(values) > 1 else middle


def value(path: Path, what: str) -> str:
    """The median of one measurement with its unit."""
    row = next((row for row in read(path)["rows"] if row["what"] == what), None)
    if row is None:
        raise BadInput(f"{path}: has no row {what!r}")
    return f"{spread(row['values']).partition(' ')[0]} {row['unit']}"


def minutes(path: Path, job: str) -> str:
    """How long the trainings of a finished job took."""
    return f"{sum(row['seconds'] for row in read(path)['rows'][job]) / 60:.0f} minutes"


def speed(path: Path) -> str:
    """The tables of a speed.json, and its picture, written beside the results."""
    check = read(path)
    png, text = speed_tables.speed(check, f"{path.parent.name}/{path.stem}.png")
    write_own(path.parent, f"{path.stem}.png", png)
    return text


def times(path: Path, engine: str) -> str:
    """An engine's speed relative to the best dense one of its precision, and of any precision."""
    return speed_tables.times(read(path), engine)


FUNCTIONS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (table, picture, score, highest, measured, value, speed, times, minutes)
}


def render(folder: Path) -> str:
    """Render `folder`/page.in. Raises BadInput."""
    page = folder / "page.in"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals |= {name: partial(_call, page, name) for name in FUNCTIONS}
    try:
        return environment.from_string(files.read_text(page)).render()
    except TemplateError as problem:
        raise BadInput(f"{page}: {problem}; the functions are {', '.join(FUNCTIONS)}") from problem
    except UnicodeDecodeError as problem:
        raise BadInput(f"{page}: not UTF-8 ({problem})") from None


def _call(page: Path, function: str, *arguments: Any) -> str:
    try:
        name, *others = arguments
        return FUNCTIONS[function](page.with_name(f"{name}.json"), *others)
    except BadInput:
        raise
    except (IndexError, *DAMAGE) as problem:
        call = f"{function}({', '.join(map(repr, arguments))})"
        raise BadInput(f"{page}: {call}: cannot be filled in ({problem})") from problem


def write(folder: Path) -> Path:
    """Write the page beside `folder`, under its name, and return its path. Raises BadInput."""
    home = folder.resolve()
    write_own(folder, f"../{home.name}.md", render(folder).encode())
    return home.with_name(f"{home.name}.md")


if __name__ == "__main__":
    print(write(Path(__file__).parent))
