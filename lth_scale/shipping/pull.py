"""Pulling tickets from the Hugging Face Hub."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.hub_access import check_source, fetch, session
from lth_scale.config.manifest import Manifest
from lth_scale.shipping.export.locations import MANIFEST, is_card, is_taken, read_manifest
from lth_scale.shipping.publication import PUSHED


def pull(name: str, output_dir: str | Path | None = None, revision: str | None = None) -> Path:
    """Download what `push` uploaded and check every digest and every zero. Returns the directory.

    Raises BadInput for a repository that does not exist or was not pushed by lth_scale, for damaged
    files and for a directory that is not free, Stopped if the Hub fails. What was downloaded stays
    in the Hub's cache and is not downloaded again.
    """
    check_source(name, revision)
    directory = Path(output_dir or name.split("/")[-1])
    exists = is_taken(directory)
    if exists and not (directory / MANIFEST).is_file():
        raise BadInput(
            f"--output_dir {directory}: exists and was not pulled; specify another directory"
        )
    with session():
        path = _download_manifest(name, revision)
        if exists and path.read_bytes() != (directory / MANIFEST).read_bytes():
            raise BadInput(
                f"--output_dir {directory}: holds another export; specify another directory"
            )
        if exists:
            verify(directory)
            return directory
        manifest = manifest_to_pull(path.parent, name)
        cache = _download_files(name, revision, path.parent.name, manifest.files)
    with directories.new_directory(directory) as unfinished:
        try:
            copy_verified(cache, unfinished, manifest)
            verify(unfinished)
        except BadInput as problem:
            shutil.rmtree(unfinished, ignore_errors=True)
            why = str(problem).replace(str(unfinished), name)
            raise BadInput(
                f"{why}; nothing was kept: if the download was damaged, delete {cache} and "
                "pull again"
            ) from problem
    return directory


def _download_manifest(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    def download() -> str:
        return hf_hub_download(name, MANIFEST, revision=revision)

    return Path(fetch(download, name, revision, MANIFEST))


def _download_files(name: str, revision: str | None, commit: str, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(name, revision=commit, allow_patterns=sorted(names))

    return Path(fetch(download, name, revision))


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
            f"{name}: its {MANIFEST} lists {foreign[0]!r}, which no push uploads; "
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
        directories.make_directory(target.parent)
        shutil.copyfile(source, target)
        if manifest.is_intact(directory, name):
            continue
        if not is_card(name):
            raise BadInput(f"{target}: changed since it was pushed; push or pull again")
        target.unlink()


def verify(directory: Path) -> None:
    """Raise BadInput unless ticket and weights are whole, and pruned weights are zero."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export.loading import load_dense

    ticket = Ticket.load(directory / "ticket.safetensors")
    for folder in (directory, directory / "compact"):
        model = load_dense(folder)
        weights = prunable(model)
        for name, mask in ticket.masks_for(model).items():
            if weights[name][~mask].any():
                raise BadInput(
                    f"{folder}: {name} is not zero where the ticket prunes it; "
                    "pull another revision"
                )
