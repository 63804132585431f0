"""The files of a repository on the Hub: weights twice, ticket, provenance, figures and card."""

import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.texts import printable
from lth_scale.science import figures
from lth_scale.shipping import card
from lth_scale.shipping.card_metadata import Licence
from lth_scale.shipping.export import writing
from lth_scale.shipping.export.locations import MANIFEST, write_manifest
from lth_scale.shipping.export.source import load_source
from lth_scale.shipping.publication import PUSHED
from lth_scale.shipping.published_run import PublishedRun
from lth_scale.tracking.console import print_line

PICTURES = ("score_against_sparsity.png", "sparsity_by_layer.png")
PROVENANCE = ("arguments.json", "results.json", "controls.json")


def fill(folder: Path, stage: Path, repo: str, licence: Licence) -> None:
    """Write all that is uploaded; dense and compact weights are read back and compared."""
    run = PublishedRun.of_stage(stage)
    source = replace(load_source(str(stage)), path=Path(repo))
    compact, dense = (writing.describe(source, kind, "float32") for kind in ("compact", "dense"))
    writing.write_export(folder / "compact", source, compact)
    writing.write_export(folder, source, dense)
    run.publication.ticket(run.ticket).save(folder / "ticket.safetensors")
    for name in PROVENANCE:
        path = run.run_directory.directory / name
        if path.is_file():
            shutil.copy(path, folder)
    draw_figures(run, folder / "figures")
    card.write(folder, run, repo, licence)
    remove_foreign(folder)
    for directory in (folder / "compact", folder):  # the second manifest lists the first
        run.publication.rewrite(directory)
        manifest = files.read_json(directory / MANIFEST)
        computed = ("files", "sha256")
        write_manifest(
            directory, {key: value for key, value in manifest.items() if key not in computed}
        )


def remove_foreign(folder: Path) -> None:
    """Delete the files that a pull would refuse, such as those of some tokenizers, and log them."""
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    foreign = [name for name in paths if not re.fullmatch(PUSHED, name, re.ASCII)]
    for name in foreign:
        paths[name].unlink()
    if foreign:
        names = ", ".join(map(repr, foreign))
        print_line(printable(f"not uploaded, because a pull refuses files of such names: {names}"))


def draw_figures(run: PublishedRun, folder: Path) -> None:
    """Copy the figures of a search; draw the scores if they are not there yet."""
    folder.mkdir()
    for name in PICTURES:
        path = run.run_directory.directory / "figures" / name
        if path.is_file():
            shutil.copy(path, folder)
    if (folder / PICTURES[0]).is_file():
        return
    metric = next(iter(run.metrics["eval"]))
    points = defaultdict[float, list[float]](list)
    for row in run.run_directory.seed_rows() or run.run_directory.round_rows():
        points[100 * row["sparsity"]].append(row["eval"][metric])
    lines: figures.Lines = {"none": {}, run.control: points}
    panels: dict[str, tuple[figures.Lines, list[float]]] = {metric.replace("_", " "): (lines, [])}
    if png := figures.scores(panels, figures.SPARSITY, run.args.task):
        files.write_bytes(folder / PICTURES[0], png)
