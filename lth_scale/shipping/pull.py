"""Bringing tickets back from the Hub."""

import re
import shutil
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.hub_access import check_source, fetch, session
from lth_scale.shipping.export.locations import (
    MANIFEST,
    is_card,
    is_taken,
    is_whole,
    manifest,
    opened,
)
from lth_scale.shipping.hub import PUSHED


def pull(name: str, output_dir: str | Path | None = None, revision: str | None = None) -> Path:
    """Download what `push` uploaded, check every digest and every zero, and put it in place; returns the directory.

    Raises BadInput for a repository that is not there or not ours, for damaged files and for a directory that is
    taken, Stopped where the Hub fails. What was downloaded is in the Hub's cache then, and is not fetched again.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    check_source(name, revision)
    out = Path(output_dir or name.split("/")[-1])
    there = is_taken(out)
    if there and not (out / MANIFEST).is_file():
        raise BadInput(f"--output_dir {out}: is there already, and was not pulled; give another")
    with session():
        first = Path(
            fetch(
                lambda: hf_hub_download(name, MANIFEST, revision=revision), name, revision, MANIFEST
            )
        )
        if there and first.read_bytes() != (out / MANIFEST).read_bytes():
            raise BadInput(f"--output_dir {out}: holds another export; give another")
        if there:
            verify(out)
            return out
        names = pulled(first.parent, name)
        commit = first.parent.name

        def snapshot() -> str:
            return snapshot_download(name, revision=commit, allow_patterns=sorted(names))

        cache = Path(fetch(snapshot, name, revision))
    with directories.new_directory(out) as made:
        try:
            copy(cache, made, names)
            verify(made)
        except BadInput as problem:
            shutil.rmtree(made, ignore_errors=True)
            why = str(problem).replace(str(made), name)
            raise BadInput(
                f"{why}; nothing was kept: if that was the transfer, delete {cache} and pull again"
            ) from problem
    return out


def pulled(cache: Path, name: str) -> dict[str, str]:
    """The files that a repository's export.json lists, and itself, with their digests where it has them.

    Raises BadInput where it is damaged, or lists a file of a kind that `push` does not upload.
    """
    try:
        listed = manifest(cache)["files"]
    except BadInput as problem:
        raise BadInput(str(problem).replace(str(cache), name)) from problem
    if foreign := [each for each in listed if not re.fullmatch(PUSHED, each, re.ASCII)]:
        raise BadInput(
            f"{name}: its {MANIFEST} lists {foreign[0]!r}, which no push makes; give another repository"
        )
    before = (
        {f"compact/{MANIFEST}": ""} if "compact/config.json" in listed else {}
    )  # version 0.1.0 did not list it
    return before | listed | {MANIFEST: ""}


def copy(cache: Path, made: Path, names: dict[str, str]) -> None:
    """Copy files out of the Hub's cache and check each as it was copied; an edited card is left behind.

    Raises BadInput for a file that is missing, was changed, or is a link out of the repository.
    """
    for name, digest in names.items():
        source, target = cache / name, made / name
        if not source.resolve().is_relative_to(cache.parents[1].resolve()) or not source.is_file():
            if is_card(name):
                continue
            raise BadInput(f"{made}/{name}: is missing; push or pull again")
        directories.make_directory(target.parent)
        shutil.copyfile(source, target)
        if digest and not is_whole(target, digest):
            if not is_card(name):
                raise BadInput(
                    f"{made}/{name}: was changed since it was pushed; push or pull again"
                )
            target.unlink()


def verify(directory: Path) -> None:
    """Raise BadInput unless ticket and weights are whole, and the weights zero where the ticket prunes."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export import disk

    ticket = Ticket.load(directory / "ticket.safetensors")
    for folder in (directory, directory / "compact"):
        opened(folder)
        model = disk.load_network(folder, dense=True)
        weights = prunable(model)
        for name, mask in ticket.masks_for(model).items():
            if weights[name][~mask].any():
                raise BadInput(
                    f"{folder}: {name} is not zero where the ticket prunes it; pull another revision"
                )
