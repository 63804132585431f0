"""Where local data and models are. Does not import torch."""

import os
from pathlib import Path

from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput

SPLITS = ("train", "validation", "test")
# Formats of the user's own data by the ending of the name, before that of a compression.
FORMATS = {
    **{".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json"},
    **{".parquet": "parquet", ".arrow": "arrow", ".txt": "text", ".conll": "text"},
}
COMPRESSIONS = (".gz", ".xz")


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


def file_format(path: Path) -> str:
    """The format of a file of rows, one of FORMATS, or "" if its name does not tell."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return FORMATS.get(Path(name).suffix, "")


def own_files(args: Training) -> dict[str, Path]:
    """The local files of the user's own data, by split; none of a dataset on the Hub.

    Raises BadInput as `files_of` does.
    """
    if args.dataset_path:
        return files_of(Path(args.dataset_path))
    flags = {split: getattr(args, f"{split}_file") for split in SPLITS}
    return {split: Path(path) for split, path in flags.items() if path}


def files_of(directory: Path) -> dict[str, Path]:
    """The files of rows in a directory, by split. Raises BadInput if a split has several."""
    files = {split: _file_of(directory, split) for split in SPLITS}
    return {split: path for split, path in files.items() if path}


def _file_of(directory: Path, split: str) -> Path | None:
    paths = [path for path in sorted(directory.glob(f"{split}.*")) if file_format(path)]
    if len(paths) > 1:
        raise BadInput(
            f"--dataset_path {directory}: holds {paths[0].name} and {paths[1].name}; keep one of "
            "them"
        )
    return paths[0] if paths else None


def data_origin(args: Training, dataset: tuple[str, str]) -> str:
    """Where the data is, for messages: a flag and its value, or `dataset` on the Hub."""
    flags = ("dataset_path", "train_file", "dataset_name")
    given = (f"--{flag} {value}" for flag in flags if (value := getattr(args, flag)))
    return next(given, f"dataset {dataset[0]}")
