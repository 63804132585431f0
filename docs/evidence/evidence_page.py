"""Results small enough to commit, and a page written from them, so that no number in it is typed by hand.

`python -m lth_scale.report RUN --save docs/evidence/NAME.json` keeps of a study what its report needs; jobs that the
file has and RUN has not stay in it, so a study may be run in parts, on several machines.
`python -m lth_scale.report docs/evidence` fills `docs/evidence/page.in` and writes `docs/evidence.md`. In the page

* `NAME` stands for NAME.json, and with a `*` in it for all such files together;
* `{{table NAME Title}}` is the table of that title, `{{picture NAME file.png}}` a picture, with how they were made;
* `{{score NAME task 0.5 random_mask}}` is mean ± sd and n (without a control: the ticket; at 0: the full network),
  `{{highest NAME task rule}}` the highest sparsity that matches under a rule;
* `{{measured NAME}}` is the table of a file of measurements, `{{value NAME what}}` one median of it;
* `{{speed NAME}}` are the tables of a speed.json of `lth_scale.speed`, `{{times NAME engine}}` one engine's ratios;
  `{{minutes NAME job}}` is how long a job's trainings took.
"""

import os
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lth_scale.config import defaults, files, listing
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import (
    LABEL,
    Section,
    Table,
    code,
    literal,
    literal_in_html,
    markdown_table,
)
from lth_scale.config.texts import as_words, quoted
from lth_scale.science import results, sections


@cache
def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{path}: cannot be read ({problem}); make it with lth_scale.report RUN --save {quoted(path)}"
        ) from None


@cache
def _study(path: Path) -> results.StudyResults:
    """The study of a file; where the name has a `*`, of all such files together: each has its own tasks."""
    parts = [_read(file) for file in sorted(path.parent.glob(path.name)) or [path]]
    try:
        return _together(path, parts)
    except results.DAMAGE as problem:
        raise BadInput(
            f"{path}: is no file of lth_scale.report --save ({problem!r}); make it again"
        ) from problem


def _together(path: Path, parts: list[dict[str, Any]]) -> results.StudyResults:
    plans = [part["plan"] for part in parts]
    rows = {job: mine for part in parts for job, mine in part["rows"].items()}
    plan = plans[0] | {
        "name": path.stem,
        "tasks": [task for task in defaults.TASKS if any(task in plan["tasks"] for plan in plans)],
        "jobs": list({job["id"]: job for plan in plans for job in plan["jobs"]}.values()),
        "cells": [cell for plan in plans for cell in plan["cells"]],
    }
    finished = {job: any(job in part["finished"] for part in parts) for job in rows}
    masks = [part["masks"] for part in parts]
    kept = masks[0] | {
        name: {k: v for each in masks for k, v in each[name].items()}
        for name in ("layers", "shared")
    }
    return results.study_of(plan, rows, finished, path.parent, kept)


@cache
def _sections(path: Path) -> list[Section]:
    return sections.sections(_study(path), delta=1.0)


def _made(path: Path) -> str:
    every = {file.stem: _read(file) for file in sorted(path.parent.glob(path.name))}
    begun = {
        name: kept["made"]
        for name, kept in every.items()
        if "plan" not in kept or any(kept["rows"].values())
    }
    lines = []
    for how in begun.values():
        command, machine, versions = (
            code(how["command"]),
            literal(how["machine"]),
            literal(how["versions"]),
        )
        lines.append(f"Made by {command} on {machine} ({versions}).")
    later = [literal(name) for name in every if name not in begun]
    return _small([*lines, *([f"Not begun: {', '.join(later)}."] if later else [])])


def _small(lines: list[str]) -> str:
    """Lines under a table or a picture that are there to be looked up, not to be read."""
    return f"<small>{'<br>'.join(lines)}</small>"


def table(path: Path, *words: str) -> str:
    """A table of a study's report, by how its title begins, and how it was made."""
    title = " ".join(words)
    found = [
        each
        for section in _sections(path)
        for each in section.tables
        if each.title.startswith(title)
    ]
    if not found:
        raise BadInput(f"{path}: has no table {title!r}; see the titles in lth_scale.report's page")
    return f"{markdown_table(found[0])}\n\n{_made(path)}"


def picture(path: Path, name: str) -> str:
    """A picture of a study's report, written beside the results, and how it was made."""
    found = {file: drawn for section in _sections(path) for file, drawn in section.pictures.items()}
    if name not in found:
        raise BadInput(f"{path}: has no picture {name!r}; take one of {', '.join(found)}")
    (caption, png), own = found[name], path.stem.replace("*", "all")
    if not png:
        raise BadInput(f"{path}: its picture {name!r} cannot be drawn; see the warning above")
    _write_own(path.parent, f"{own}-{name}", png)
    return f"![{literal(f'{own}: {caption}', LABEL)}]({path.parent.name}/{own}-{name})\n\n{_made(path)}"


def _write_own(folder: Path, name: str, content: bytes) -> Path:
    """Write the page or a picture of it. Raises BadInput where a file of that name is there and none of ours."""
    path, known = folder / name, listing.listed(folder)
    if name not in known and (
        os.path.lexists(path) or listing.is_foreign(folder / listing.LISTING)
    ):
        raise BadInput(
            f"{path}: is there already, and was not written from {folder / 'page.in'}; move it away"
        )
    listing.write_listing(folder, {*known, name})
    files.write_bytes(path, content)
    return path


def score(
    path: Path, task: str, sparsity: str, control: str = "none", source: str | None = None
) -> str:
    """Mean ± sd and n of one network, in points."""
    return str(_study(path).group(task, float(sparsity), control, source))


def highest(path: Path, task: str, rule: str) -> str:
    """The highest sparsity at which a rule holds, or `none`."""
    return sections.extent(_study(path), task, 1.0)[rule].partition(";")[0]


def measured(path: Path) -> str:
    """A file of measurements as a table: what, median [least, greatest], unit, n."""
    rows = [
        [row["what"], _median(row), row["unit"], str(len(row["values"]))]
        for row in _read(path)["rows"]
    ]
    return f"{markdown_table(Table('', ['what', 'median [least, greatest]', 'unit', 'n'], rows))}\n\n{_made(path)}"


def _median(row: dict[str, Any]) -> str:
    values = sorted(row["values"])
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    least, middle, greatest = (
        f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (values[0], middle, values[-1])
    )
    return f"{middle} [{least}, {greatest}]" if len(values) > 1 else middle


def value(path: Path, *words: str) -> str:
    """The median of one measurement with its unit."""
    found = [row for row in _read(path)["rows"] if row["what"] == " ".join(words)]
    if not found:
        raise BadInput(f"{path}: has no row {' '.join(words)!r}")
    return f"{_median(found[0]).partition(' ')[0]} {found[0]['unit']}"


def minutes(path: Path, job: str) -> str:
    """How long the trainings of a finished job took."""
    return f"{sum(row['seconds'] for row in _read(path)['rows'][job]) / 60:.0f} minutes"


def times(path: Path, engine: str) -> str:
    """How an engine compares with the best dense one of its precision, and of any, on the first target."""
    cell = _read(path)["cells"][0]
    row, best = cell["rows"][engine], cell["best"]
    said = [("times_same", best[row["precision"]]), ("times_best", best["any"])]
    return " and ".join(
        "{:.2f} [{:.2f}, {:.2f}] × {}".format(*row[name], dense) for name, dense in said
    )


def speed(path: Path) -> str:
    """The tables of a speed.json of `lth_scale.speed`, of what was timed, and its picture, beside the results."""
    from lth_scale.shipping.speed.report import break_evens, section  # imports torch

    kept, said = _read(path), []
    for cell in kept["cells"]:
        timed = {name: row for name, row in cell["rows"].items() if "ms" in row}
        skipped = ", ".join(name for name in cell["rows"] if name not in timed)
        part = section(cell | {"rows": timed})
        text = literal(f"{' '.join(part.text)} Skipped: {skipped or 'none'}.")
        said += [
            f"<details markdown><summary>{literal_in_html(part.title)}</summary>",
            text,
            *map(markdown_table, part.tables),
            "</details>",
        ]
    png, evens = break_evens(kept["cells"], kept["machine"]["cpu"])
    _write_own(path.parent, f"{path.stem}.png", png)
    drawn = [
        f"![speed-up against sparsity]({path.parent.name}/{path.stem}.png)",
        *(f"* {literal(line)}" for line in evens),
    ]
    return "\n\n".join([*drawn, markdown_table(ours(kept["cells"])), *said, _checked(kept)])


def ours(cells: list[dict[str, Any]]) -> Table:
    """Of each target and batch the sparse engines: × the best dense of their precision and of any, with verdicts."""
    rows = []
    for cell in cells:
        where = [
            cell["target"],
            f"{cell['sparsity']:.0%}".replace("%", " %"),
            str(cell["batch_size"]),
        ]
        for name, row in cell["rows"].items():
            if row["sparse"] and "ms" in row:
                said = [
                    "{:.2f} [{:.2f}, {:.2f}]".format(*row[key])
                    for key in ("times_same", "times_best")
                ]
                rows.append([*where, name, *said, row["verdict_best"]])
    header = [
        "network",
        "pruned",
        "batch",
        "engine",
        "× the best dense of its precision",
        "× the best dense of any",
        "verdict against any",
    ]
    return Table("", header, rows)


def _checked(kept: dict[str, Any]) -> str:
    """The command of a speed check, and on what it ran."""
    targets = [*dict.fromkeys(cell["target"] for cell in kept["cells"])]
    given = {
        name: words for name, words in kept["settings"].items() if words not in (None, "auto", 0)
    }
    flags = [word for name, value in given.items() for word in as_words(name, value)]
    here, named = kept["machine"], ["torch", "onnxruntime", "openvino"]
    versions = ", ".join(
        f"{name} {here['versions'][name]}" for name in named if name in here["versions"]
    )
    command = code(shlex.join(["python", "-m", "lth_scale.speed", *targets, *flags]))
    machine = literal(f"{here['cpu']}, {here['gpu'] or 'no GPU'} ({versions})")
    return _small([f"Made by {command} on {machine}."])


FILLED: dict[str, Callable[..., str]] = {
    "table": table,
    "picture": picture,
    "score": score,
    "highest": highest,
    "measured": measured,
    "value": value,
    "speed": speed,
    "times": times,
    "minutes": minutes,
}


def fill(folder: Path) -> str:
    """`folder`/page.in with everything in {{ }} filled in. Raises BadInput where that cannot be."""

    def one(found: re.Match[str]) -> str:
        what, *words = found[1].split()
        if what not in FILLED or not words:
            raise BadInput(
                f"{folder / 'page.in'}: {found[0]} is not known; take one of {', '.join(FILLED)}"
            )
        try:
            return FILLED[what](folder / f"{words[0]}.json", *words[1:])
        except BadInput:
            raise
        except (IndexError, *results.DAMAGE) as problem:
            raise BadInput(
                f"{folder / 'page.in'}: {found[0]}: cannot be filled in ({problem}); see evidence.py"
            ) from problem

    try:
        text = files.read_text(folder / "page.in")
    except ValueError as problem:
        raise BadInput(f"{folder / 'page.in'}: is no text ({problem}); save it as UTF-8") from None
    return re.sub(r"\{\{(.+?)\}\}", one, text)


def write(folder: Path) -> Path:
    """Write the page beside `folder`, under its name. Returns its file."""
    home = folder.resolve()
    _write_own(folder, f"../{home.name}.md", fill(folder).encode())
    return home.with_name(f"{home.name}.md")


if __name__ == "__main__":
    print(write(Path(__file__).parent))
