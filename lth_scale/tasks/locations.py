"""Where local data and models are. Does not import torch."""

import os
from pathlib import Path

from lth_scale.config.defaults import EMBEDDED


def embedded_path(kind: str) -> Path:
    """The directory inside the package that holds `bert`, or the demo data of a task."""
    return Path(__file__).parent / "embedded" / kind


def local_directory(task: str, dataset: str | None) -> Path | None:
    """The directory of --dataset_path, or None if the data is on the Hub."""
    if dataset == EMBEDDED:
        return embedded_path(task)
    return Path(dataset) if dataset else None


def data_file(directory: Path, split: str) -> Path | None:
    """`directory/split.jsonl` or `directory/split.jsonl.xz`, or None if neither exists."""
    paths = (directory / f"{split}.jsonl{suffix}" for suffix in ("", ".xz"))
    return next(filter(os.path.lexists, paths), None)
