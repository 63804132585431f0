"""Where networks and exports are, and whether an export is intact. Does not import torch."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import directories, files, run_files
from lth_scale.config.arguments import with_current_names
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.manifest import Manifest
from lth_scale.config.resolution import HUB_NAME
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.tasks.locations import embedded_path

MANIFEST, FORMAT = "export.json", "lth_scale.export/1"
LARGEST = 2**20  # bytes of a manifest
WANTED = "a search's --output_dir, a round of it, a directory of save_pretrained or a Hub name"
TYPES = {
    **dict.fromkeys(("dtype", "architecture", "source", "source_sha256"), str),
    **dict.fromkeys(("pruned", "prunable", "dense_bytes"), int),
    "sparsity": float,
    "difference": dict,
}


@dataclass(frozen=True)
class NetworkLocation:
    """A directory or a Hub name; the ticket of its zeros, if known; arguments.json of its run."""

    model: Path
    ticket: Path | None = None
    run: dict[str, Any] = field(default_factory=dict)


def locate(path: str) -> NetworkLocation:
    """Return the network that a path or a Hub name refers to. Raises BadInput if there is none."""
    directory = Path(path)
    if path == EMBEDDED:
        return NetworkLocation(embedded_path("bert"))
    is_hub_name = not directory.exists() and re.fullmatch(HUB_NAME, path, re.ASCII)
    if is_hub_name or (directory / MANIFEST).is_file():
        return NetworkLocation(directory)
    location = _find(path)
    try:
        files.check_model(location.model)
    except OSError as problem:
        raise BadInput(
            f"{problem.filename}: {problem.strerror}; replace it with a file, or use {WANTED}"
        ) from None
    return location


def _find(path: str) -> NetworkLocation:
    directory = Path(path)
    if (directory / "rounds").is_dir():
        complete = [stage for stage in _stages(directory, "rounds") if _is_complete(stage)]
        if not complete:
            raise BadInput(f"{path}: no complete round with its network; finish the search first")
        return _of_stage(max(complete, key=lambda stage: int(stage.name)))
    if (directory / "seeds").is_dir() or directory.absolute().parent.name == "seeds":
        for stage in (directory, *_stages(directory, "seeds")):
            if _has_network(stage):
                return _of_stage(stage)
        raise BadInput(
            f"{path}: a transfer keeps its network only with --keep_network; run it again with "
            "that flag, or use the --output_dir of a search (lth_scale.imp)"
        )
    if (directory / "ticket.safetensors").is_file():
        return _of_stage(directory)
    if (directory / "config.json").is_file():
        return NetworkLocation(directory)
    exists = directory.exists()
    problem = "no model there (config.json is missing)" if exists else "no such directory"
    raise BadInput(f"{path}: {problem}; use {WANTED}")


def _stages(run: Path, kind: str) -> list[Path]:
    return [stage for stage in run_files.stage_directories(run) if stage.parent == run / kind]


def _has_network(stage: Path) -> bool:
    return (stage / "model/config.json").is_file()


def _is_complete(stage: Path) -> bool:
    return _has_network(stage) and (stage / "complete").is_file()


def _of_stage(stage: Path) -> NetworkLocation:
    if not _is_complete(stage):
        raise BadInput(
            f"{stage}: has no network of a complete round: a search keeps only its last; use "
            "the search, or train this ticket with lth_scale.transfer --ticket … --keep_network"
        )
    kind, run, arguments = stage.absolute().parent.name, stage.absolute().parents[1], {}
    if kind in ("rounds", "seeds") and (run / "arguments.json").is_file():
        try:
            run_files.check_whole(run)
            arguments = with_current_names(files.read_json(run / "arguments.json"))
        except ValueError as problem:
            raise BadInput(f"{run}: {problem}; restore a copy of it, or use another run") from None
    return NetworkLocation(stage / "model", stage / "ticket.safetensors", arguments)


def write_manifest(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write export.json: `content`, the SHA-256 of every other file, and a seal. Returns it."""
    paths = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*"))}
    digests = {
        name: files.sha256(path)
        for name, path in paths.items()
        if path.is_file() and name != MANIFEST
    }
    facts = {key: content[key] for key in content if key not in ("format", "files", "sha256")}
    manifest = Manifest(FORMAT, digests, facts)
    manifest.write(directory / MANIFEST, sealed=True)
    return {**manifest.content, "sha256": manifest.digest}


def read_verified(directory: Path) -> dict[str, Any]:
    """Read export.json and verify every file but the model card. Raises BadInput."""
    manifest = read_manifest(directory)
    for name in manifest.files:
        if not is_card(name) and not manifest.is_intact(directory, name):
            raise BadInput(
                f"{directory}/{name}: is missing or was altered; restore a copy of it, "
                "or export again"
            )
    return {**manifest.content, "sha256": manifest.digest}


def read_manifest(directory: Path) -> Manifest:
    """Read export.json without verifying its files. Raises BadInput if it is damaged or missing."""
    try:
        manifest = Manifest.read(directory / MANIFEST, FORMAT, sealed=True, limit=LARGEST)
        facts, kind = manifest.facts, FORMATS.get(manifest.facts.get("kind", ""))
        if kind is None:
            raise ValueError("unknown kind")
        if wrong := [key for key, type_ in TYPES.items() if type(facts.get(key)) is not type_]:
            raise ValueError(f"invalid value of {wrong[0]}")
        required = {"config.json", kind.file}
        if facts["dtype"] not in kind.dtypes or not required <= manifest.files.keys():
            raise ValueError("its dtype or files do not belong to its kind")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
            raise ValueError("it lists files outside the directory")
    except (OSError, ValueError) as problem:
        raise BadInput(
            f"{directory}/{MANIFEST}: not an intact {FORMAT} file ({problem}); "
            "restore a copy of it, or export again"
        ) from problem
    return manifest


def is_card(name: str) -> bool:
    """Return whether a file of a repository is one that people edit there."""
    return name == "README.md" or name.startswith(".eval_results/")


def is_taken(directory: Path) -> bool:
    """Return False for an empty or missing directory. Raises BadInput if it is not writable."""
    with directories.must_be_writable(f"--output_dir {directory}"):
        directory.exists()  # raises if the name is too long
        directories.check_writable(directory.parent)
        empty = directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())
    return os.path.lexists(directory) and not empty


def check_output(directory: Path, kind: str, dtype: str) -> dict[str, Any]:
    """Return export.json if the directory holds an export of this format, or {} if it is free.

    Raises BadInput otherwise.
    """
    if not is_taken(directory):
        return {}
    if not (directory / MANIFEST).is_file():
        problem = "exists and is not an export"
    else:
        manifest = read_verified(directory)
        if (manifest["kind"], manifest["dtype"]) == (kind, dtype):
            return manifest
        problem = f"holds another export ({manifest['kind']} in {manifest['dtype']})"
    raise BadInput(f"--output_dir {directory}: {problem}; use another directory")
