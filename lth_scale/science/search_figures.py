"""The figures of a search, in its directory."""

import logging
from collections.abc import Mapping
from pathlib import Path

from lth_scale.config import files
from lth_scale.science import figures
from lth_scale.tracking.run_directory import RunDirectory

log = logging.getLogger("lth_scale")


def draw_search(record: RunDirectory, layers: Mapping[str, float]) -> dict[str, bytes]:
    """Write a search's figures into its directory and return those that are there, by file name.

    layers: sparsity of each matrix of the last ticket.
    """
    args = record.arguments
    rows = {"none": record.round_rows()}
    if record.control != "none":
        rows[record.control] = record.control_rows()
    metric, dense = next(iter(rows["none"][0]["eval"].items()))
    lines = {
        control: {100 * row["sparsity"]: [row["eval"][metric]] for row in results}
        for control, results in rows.items()
    }
    title = f"{args.task}, {args.model_name_or_path.rstrip('/').split('/')[-1]}, seed {args.seed}"
    title += f"\n{args.note}" if args.note else ""
    panel = {metric.replace("_", " "): (lines, [dense])}
    pictures = {
        "score_against_sparsity.png": figures.scores(panel, figures.SPARSITY, title),
        "sparsity_by_layer.png": figures.sparsity_by_layer(layers, f"{title}: the last ticket"),
    }
    return {
        name: png
        for name, png in pictures.items()
        if png and _write(record.directory / "figures" / name, png)
    }


def _write(path: Path, png: bytes) -> bool:
    try:
        files.write_bytes(path, png)
    except OSError as problem:
        log.warning("%s is left out: it cannot be written (%s)", path, problem.strerror)
    return path.is_file()
