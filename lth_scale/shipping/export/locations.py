"""Where networks and exports lie, and whether an export is whole. Does not import torch."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import directories, files, run_files
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.manifest import Manifest
from lth_scale.config.resolution import HUB_NAME
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.tasks.locations import embedded_path

MANIFEST, FORMAT = "export.json", "lth_scale.export/1"
LARGEST = 2**20  # bytes of a manifest
WANTED = "a search's --output_dir, a round of it, a directory of save_pretrained or a Hub name"
OWN_KEYS = ("format", "files", "sha256")  # of export.json, beside its facts
TYPES = {
    "dtype": str,
    "architecture": str,
    "source": str,
    "source_sha256": str,
    "sparsity": float,
    "pruned": int,
    "prunable": int,
    "dense_bytes": int,
    "difference": dict,
}


@dataclass(frozen=True)
class NetworkLocation:
    """Where a network lies.

    model: a directory or a Hub name. ticket: the mask of its zeros, if known. run: arguments.json
    of the run that it is from, or {}.
    """

    model: Path
    ticket: Path | None = None
    run: dict[str, Any] = field(default_factory=dict)


def locate(path: str) -> NetworkLocation:
    """Return the network that a path or a Hub name stands for. Raises BadInput if there is none."""
    directory = Path(path)
    if path == EMBEDDED:
        return NetworkLocation(embedded_path("bert"))
    is_hub_name = not directory.exists() and re.fullmatch(HUB_NAME, path, re.ASCII)
    if is_hub_name or (directory / MANIFEST).is_file():
        return NetworkLocation(directory)
    if (directory / "rounds").is_dir():
        return _last_round(directory)
    if (directory / "seeds").is_dir() or directory.absolute().parent.name == "seeds":
        return _first_seed(directory)
    if (directory / "ticket.safetensors").is_file():
        return _of_stage(directory)
    if not (directory / "config.json").is_file():
        exists = directory.exists()
        problem = "no model there (config.json is missing)" if exists else "no such directory"
        raise BadInput(f"{path}: {problem}; specify {WANTED}")
    return _checked(NetworkLocation(directory))


def _last_round(search: Path) -> NetworkLocation:
    rounds = [
        stage for stage in run_files.stage_directories(search) if stage.parent == search / "rounds"
    ]
    complete = [stage for stage in rounds if _is_complete(stage)]
    if not complete:
        raise BadInput(f"{search}: no complete round with its network; finish the search first")
    return _of_stage(max(complete, key=lambda stage: int(stage.name)))


def _first_seed(transfer: Path) -> NetworkLocation:
    seeds = [
        stage
        for stage in run_files.stage_directories(transfer)
        if stage.parent == transfer / "seeds"
    ]
    for stage in (transfer, *seeds):
        if _has_network(stage):
            return _of_stage(stage)
    raise BadInput(
        f"{transfer}: a transfer keeps its network only with --keep_network; run it again with "
        "that flag, or specify the --output_dir of a search (lth_scale.imp)"
    )


def _has_network(stage: Path) -> bool:
    return (stage / "model/config.json").is_file()


def _is_complete(stage: Path) -> bool:
    return _has_network(stage) and (stage / "complete").is_file()


def _of_stage(stage: Path) -> NetworkLocation:
    if not _is_complete(stage):
        raise BadInput(
            f"{stage}: has no network of a complete round: a search keeps only its last; specify "
            "the search, or train this ticket with lth_scale.transfer --ticket … --keep_network"
        )
    run, arguments = stage.absolute().parent.parent, {}
    if stage.absolute().parent.name in ("rounds", "seeds") and (run / "arguments.json").is_file():
        try:
            run_files.check_whole(run)
            arguments = files.read_json(run / "arguments.json")
        except ValueError as problem:
            raise BadInput(
                f"{run}: {problem}; restore it from a copy, or use another run"
            ) from None
    return _checked(NetworkLocation(stage / "model", stage / "ticket.safetensors", arguments))


def _checked(location: NetworkLocation) -> NetworkLocation:
    try:
        files.check_model(location.model)
    except OSError as problem:
        raise BadInput(
            f"{problem.filename}: {problem.strerror}; replace it with a file, or specify {WANTED}"
        ) from None
    return location


def write_manifest(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write export.json: `content`, the SHA-256 of every other file, and a seal. Returns it."""
    facts = {key: value for key, value in content.items() if key not in OWN_KEYS}
    paths = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file())
    names = [path.as_posix() for path in paths if path != Path(MANIFEST)]
    digests = {name: files.sha256(directory / name) for name in names}
    manifest = Manifest(FORMAT, digests, facts)
    manifest.write(directory / MANIFEST, sealed=True)
    return content_of(manifest)


def content_of(manifest: Manifest) -> dict[str, Any]:
    """Return export.json as a dictionary."""
    return {**manifest.content, "sha256": manifest.digest}


def read_verified(directory: Path) -> dict[str, Any]:
    """Read export.json and verify every file. Raises BadInput for one that is missing or changed.

    The model card may be edited or missing.
    """
    manifest = read_manifest(directory)
    names = (name for name in manifest.files if not is_card(name))
    if damaged := manifest.first_damaged(directory, names):
        raise BadInput(
            f"{directory}/{damaged}: missing, or changed since it was exported; "
            "export or copy it again"
        )
    return content_of(manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read export.json without verifying its files. Raises BadInput if it is damaged or missing."""
    try:
        manifest = Manifest.read(directory / MANIFEST, FORMAT, sealed=True, limit=LARGEST)
        _check(manifest)
    except (OSError, ValueError) as problem:
        raise BadInput(
            f"{directory}/{MANIFEST}: not an intact {FORMAT} file ({problem}); "
            "export or copy it again"
        ) from problem
    return manifest


def _check(manifest: Manifest) -> None:
    facts = manifest.facts
    if facts.get("kind") not in FORMATS:
        raise ValueError("unknown kind")
    if wrong := [key for key, kind in TYPES.items() if type(facts.get(key)) is not kind]:
        raise ValueError(f"invalid value of {wrong[0]}")
    kind = FORMATS[facts["kind"]]
    if facts["dtype"] not in kind.dtypes or not {"config.json", kind.file} <= manifest.files.keys():
        raise ValueError("its dtype or files do not belong to its kind")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
        raise ValueError("it lists files outside the directory")


def is_card(name: str) -> bool:
    """Return whether a file of a repository is one that people edit there."""
    return name == "README.md" or name.startswith(".eval_results/")


def is_taken(directory: Path) -> bool:
    """Return whether the directory exists and is not empty; a link is taken.

    Raises BadInput if it cannot be written.
    """
    try:
        directory.exists()  # raises if the name is too long
        directories.check_writable(directory.parent)
        empty = directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())
    except OSError as problem:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({problem.strerror}); "
            "specify another directory"
        ) from None
    return os.path.lexists(directory) and not empty


def check_output(directory: Path, kind: str, dtype: str) -> dict[str, Any]:
    """Return export.json of an export of this format in the directory, or {} if it is free.

    Raises BadInput if it holds anything else or cannot be written.
    """
    flag = f"--output_dir {directory}"
    if not is_taken(directory):
        return {}
    if not (directory / MANIFEST).is_file():
        raise BadInput(f"{flag}: exists and is not an export; specify another directory")
    manifest = read_verified(directory)
    if (manifest["kind"], manifest["dtype"]) != (kind, dtype):
        raise BadInput(
            f"{flag}: holds another export ({manifest['kind']} in {manifest['dtype']}); "
            "specify another directory"
        )
    return manifest
