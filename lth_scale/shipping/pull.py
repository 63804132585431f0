"""Downloading what was pushed to the Hub, verified."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.errors import BadInput
from lth_scale.config.hub_access import _fetched, check_source, polite
from lth_scale.config.manifest import Manifest
from lth_scale.shipping.export.locations import (
    MANIFEST,
    is_card,
    is_taken,
    read_manifest,
    read_verified,
)
from lth_scale.shipping.hub import PUSHED


def pull(name: str, output_dir: str | Path | None = None, revision: str | None = None) -> Path:
    """Download what `push` uploaded, verify every digest and every zero, and return its directory.

    Raises BadInput if the repository does not exist or was not pushed by lth_scale, if a file is
    damaged or the directory is taken, and Stopped if the Hub fails: what was downloaded until then
    is cached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    check_source(name, revision)
    out = Path(output_dir or name.split("/")[-1])
    there = is_taken(out)
    if there and not (out / MANIFEST).is_file():
        raise BadInput(f"--output_dir {out}: already exists, and was not pulled; use another")
    with polite():
        first = Path(
            fetch(
                lambda: hf_hub_download(name, MANIFEST, revision=revision), name, revision, MANIFEST
            )
        )
        if there and first.read_bytes() != (out / MANIFEST).read_bytes():
            raise BadInput(f"--output_dir {out}: holds another export; use another")
        if there:
            verify(out)
            return out
        manifest = manifest_to_pull(first.parent, name)
        commit = first.parent.name

        def fetch() -> str:
            return snapshot_download(name, revision=commit, allow_patterns=sorted(manifest.files))

        cache = Path(fetch(snapshot, name, revision))
    with files.new_directory(out) as made:
        try:
            copy_verified(cache, made, manifest)
            verify(made)
        except BadInput as problem:
            shutil.rmtree(made, ignore_errors=True)
            why = str(problem).replace(str(made), name)
            raise BadInput(
                f"{why}; nothing was kept: if the download was damaged, delete "
                f"{cache} and pull again"
            ) from problem
    return out


def manifest_to_pull(cache: Path, name: str) -> Manifest:
    """Read a repository's export.json and add itself to the files that it lists.

    Raises BadInput if it is damaged, or lists a file of a kind that `push` does not upload.
    """
    try:
        manifest = read_manifest(cache)
    except BadInput as problem:
        raise BadInput(str(problem).replace(str(cache), name)) from problem
    listed = manifest.files
    if foreign := [file for file in listed if not re.fullmatch(PUSHED, file, re.ASCII)]:
        raise BadInput(
            f"{name}: its {MANIFEST} lists {foreign[0]!r}, which lth_scale does not push; "
            "use another repository"
        )
    # Version 0.1.0 did not list the manifest of compact/.
    unlisted = {f"compact/{MANIFEST}": ""} if "compact/config.json" in listed else {}
    return replace(manifest, files={**unlisted, **listed, MANIFEST: ""})


def copy_verified(cache: Path, directory: Path, manifest: Manifest) -> None:
    """Copy the files of a manifest out of the Hub's cache, verify each, and drop an edited card.

    Raises BadInput for a file that is missing, was changed, or is a link out of the repository.
    """
    repository = cache.parents[1].resolve()
    for name in manifest.files:
        source, target = cache / name, directory / name
        if not source.resolve().is_relative_to(repository) or not source.is_file():
            if is_card(name):
                continue
            raise BadInput(f"{target}: missing; push or pull again")
        files.make_directory(target.parent)
        shutil.copyfile(source, target)
        if manifest.is_intact(directory, name):
            continue
        if not is_card(name):
            raise BadInput(f"{target}: changed since it was pushed; push or pull again")
        target.unlink()


def verify(directory: Path) -> None:
    """Raise BadInput if a file is damaged, or a weight is not zero that the ticket prunes."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export import disk

    ticket = Ticket.load(directory / "ticket.safetensors")
    for folder in (directory, directory / "compact"):
        read_verified(folder)
        model = disk.load_network(folder, dense=True)
        weights = prunable(model)
        for name, mask in ticket.masks_for(model).items():
            if weights[name][~mask].any():
                raise BadInput(
                    f"{folder}: {name} is not zero where the ticket prunes it; "
                    "pull another revision"
                )
