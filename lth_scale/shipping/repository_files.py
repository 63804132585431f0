"""The files of a repository on the Hub: weights twice, ticket, provenance, figures and card."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.texts import printable
from lth_scale.science import figures
from lth_scale.shipping import card
from lth_scale.shipping.export import writing
from lth_scale.shipping.export.locations import MANIFEST, write_manifest
from lth_scale.shipping.export.source import load_source
from lth_scale.shipping.publication import PublishedRun
from lth_scale.shipping.pull import PUSHED
from lth_scale.tracking.console import print_line

COPIED = (
    *("arguments.json", "results.json", "controls.json"),
    *(card.PICTURE, "figures/sparsity_by_layer.png"),
)


def fill(folder: Path, stage: Path, repo: str, online: bool) -> None:
    """Write what is uploaded; dense and compact weights are read back and compared.

    online: the licence may be read from the base model's card on the Hub.
    """
    run = PublishedRun(stage)
    source = replace(load_source(str(stage)), path=Path(repo))
    for directory, kind in ((folder / "compact", "compact"), (folder, "dense")):
        writing.write_export(directory, source, writing.describe(source, kind, "float32"))
    run.publication.ticket(run.ticket).save(folder / "ticket.safetensors")
    (folder / "figures").mkdir()
    for name in COPIED:
        path = run.run_directory.directory / name
        if path.is_file():
            shutil.copy(path, folder / name)
    if not (folder / card.PICTURE).is_file():
        _draw_scores(run, folder / card.PICTURE)
    card.write(folder, run, repo, online)
    remove_foreign(folder)
    for directory in (folder / "compact", folder):  # the second manifest lists the first
        run.publication.rewrite(directory)
        write_manifest(directory, files.read_json(directory / MANIFEST))


def _draw_scores(run: PublishedRun, path: Path) -> None:
    record = run.run_directory
    panel = figures.panel_of({run.control: record.seed_rows() or record.round_rows()})
    if png := figures.scores({"": panel}, figures.SPARSITY, run.args.task).png:
        files.write_bytes(path, png)


def remove_foreign(folder: Path) -> None:
    """Delete the files that a pull would refuse, such as those of some tokenizers, and log them."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    foreign = [name for name in names if not re.fullmatch(PUSHED, name, re.ASCII)]
    for name in foreign:
        names[name].unlink()
    if foreign:
        listed = ", ".join(map(repr, foreign))
        print_line(printable(f"not uploaded, because a pull refuses files of such names: {listed}"))
