"""The model card of a ticket on the Hub, from what a run has on disk. Needs no network."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lth_scale.config import files, markdown
from lth_scale.config.arguments import Transfer
from lth_scale.config.texts import printable
from lth_scale.science import summary
from lth_scale.shipping.card_metadata import Licence, evaluation_file, metadata
from lth_scale.shipping.published_run import PublishedRun
from lth_scale.shipping.speed import report
from lth_scale.tracking import console
from lth_scale.tracking.rows import describe_starved
from lth_scale.tracking.run_directory import RunDirectory

PICTURE = "figures/score_against_sparsity.png"
NOT_MEASURED = (
    "Not measured. `python -m lth_scale.speed` on the run, or on this model once pulled, "
    "times every engine of a machine."
)


def write(folder: Path, run: PublishedRun, repo: str, licence: Licence) -> None:
    """Write README.md and `.eval_results/` into a folder that is to be uploaded."""
    card = run.publication.text(readme(folder, run, repo, licence))
    files.write_bytes(folder / "README.md", card.encode())
    if results := evaluation_file(run):
        files.write_bytes(folder / ".eval_results" / f"{run.args.task}.yaml", results.encode())


def readme(folder: Path, run: PublishedRun, repo: str, licence: Licence) -> str:
    """Return the text of the card; `folder` has the figure if it could be drawn."""
    card = render(
        "model_card.md",
        metadata=metadata(run, repo, licence).to_yaml(),
        name=repo.split("/")[-1],
        repo=repo,
        ticket=run.ticket,
        ticket_megabytes=f"{(run.stage / 'ticket.safetensors').stat().st_size / 1e6:.1f}",
        task=run.args.task,
        auto_class=run.task.auto_class,
        control=run.control,
        seed=run.seed,
        base_model=run.base_model,
        applies_to_base=run.applies_to_base,
        load_ticket=load_ticket(run, repo),
        evaluated_on=run.evaluated_on,
        scores=scores(run.run_directory),
        picture=PICTURE if (folder / PICTURE).is_file() else "",
        speed=speed_section(run),
        command=run.command,
        provenance=provenance(run.saved),
        seeds=len(run.run_directory.seed_rows()) or 1,
        unused_layers=describe_starved(run.metrics),
        note=run.args.note,
        licence=licence,
    )
    return printable(card)


def render(template: str, **values: Any) -> str:
    """Return a template of this package with these values."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lth_scale.shipping"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "literal": markdown.literal,
        "code": markdown.code,
        "code_block": markdown.code_block,
        "markdown_table": markdown.markdown_table,
        "percent": "{:.2%}".format,
        "thousands": "{:,}".format,
    }
    return environment


def scores(run_directory: RunDirectory) -> str:
    """Return the table of the run, as the terminal shows it."""
    args = run_directory.arguments
    if (
        isinstance(args, Transfer)
        and args.compare_with
        and not Path(args.compare_with, "results.json").is_file()
    ):
        run_directory = RunDirectory(run_directory.directory, replace(args, compare_with=None))
    return summary.report(run_directory)


def load_ticket(run: PublishedRun, repo: str) -> str:
    """Return the code that applies the ticket to its base model."""
    base = run.base_model if run.has_hub_base else f"DIRECTORY/OF/{run.base_model}"
    model = json.dumps(base, ensure_ascii=False)  # a quote in the name does not end the string
    revision = f', revision="{run.ticket.base_revision}"' if run.ticket.base_revision else ""
    return (
        "from lth_scale import Ticket\n"
        "from transformers import AutoModel\n"
        f'model = Ticket.from_pretrained("{repo}")'
        f".apply(AutoModel.from_pretrained({model}{revision}))"
    )


def provenance(saved: dict[str, Any]) -> str:
    """Return versions and commit of arguments.json."""
    versions = saved.get("versions", {}).items()
    text = ", ".join(f"{name} {version}" for name, version in versions if version)
    commit = saved.get("git_commit")
    return f"{text}; lth_scale at commit {commit}" if commit else text


def speed_section(run: PublishedRun) -> str:
    """Return the tables of a speed check of this run, or the command that runs one."""
    root = run.run_directory.directory
    for path in (root / "speed/speed.json", root.parent / f"speed-{root.name}/speed.json"):
        try:
            if os.path.lexists(path):
                section = measured_speed(files.read_json(path), run.ticket.pruned)
                if section:
                    return section
        except Exception:  # any file may have this name, and hold anything
            text = f"{path}: damaged report of a speed check; it is not in the card"
            console.print_line(printable(text))
    return NOT_MEASURED


def measured_speed(speed: dict[str, Any], pruned: int) -> str:
    """Return the cells of a speed.json with as many pruned weights as Markdown, or ""."""
    cells = [cell for cell in speed["cells"] if cell["pruned"] == pruned]
    if not cells:
        return ""
    here = speed["machine"]
    machine = f"{here['cpu']}, {here['cores']}, {here['gpu'] or 'no GPU'}, {here['system']}"
    section = render(
        "speed.md",
        machine=machine,
        repeats=speed["settings"]["repeats"],
        reading=report.READING,
        sections=[report.section(cell) for cell in cells],
    )
    return section.rstrip()
