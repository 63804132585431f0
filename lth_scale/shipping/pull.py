"""Pulling tickets from the Hugging Face Hub."""

import re
import shutil
from dataclasses import MISSING, dataclass, replace
from functools import partial
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import flag
from lth_scale.config.hub_access import check_source, fetch, session
from lth_scale.config.manifest import Manifest
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.export.locations import MANIFEST, is_card, is_taken, read_manifest

# The files that a push uploads and a pull keeps: weights, settings, what tokenizers of transformers
# save, card, evaluation results and figures. No code, no pickle, no link.
PUSHED = (
    r"(compact/)?\w[\w.-]*\.(safetensors|json|jinja|txt|model|codes|bpe|spm|tiktoken|tokenizer)"
    r"|(compact/)?additional_chat_templates/\w[\w.-]*\.jinja"
    r"|README\.md|\.eval_results/\w[\w.-]*\.yaml|figures/\w[\w.-]*\.png"
)


@dataclass(frozen=True, kw_only=True)
class PullFlags:
    """The flags of `lth_scale.hub pull`."""

    name: str = flag(
        "a repository that lth_scale pushed to", MISSING, positional=True, metavar="USER/NAME"
    )
    revision: str | None = flag("branch, tag or commit (default: main)", metavar="REVISION")
    output_dir: str | None = flag("a new directory (default: NAME)", metavar="DIR")


def run_pull(args: PullFlags) -> None:
    """Pull a repository; print what it contains and how to load it. Raises BadInput."""
    directory = pull(args.name, args.output_dir, args.revision)
    from lth_scale.pruning.ticket import Ticket  # imports torch

    ticket = Ticket.load(directory / "ticket.safetensors")
    counts = f"{ticket.pruned:,} of {ticket.prunable:,} prunable weights"
    dense, compact = str(directory), str(directory / "compact")
    text = (
        f"pulled to  {quoted(directory)}\n"
        f"ticket     {ticket.sparsity:.2%} ({counts}), {ticket.task}\n"
        "checked    every digest, and that pruned weights are zero\n"
        f"load it    AutoModel.from_pretrained({dense!r}), load_exported({compact!r})"
    )
    print(printable(text))


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
            f"--output_dir {directory}: exists and was not pulled; use another directory"
        )
    with session():
        from huggingface_hub import hf_hub_download, snapshot_download

        download = partial(hf_hub_download, name, MANIFEST, revision=revision)
        path = Path(fetch(download, name, revision, MANIFEST))
        if exists and path.read_bytes() != (directory / MANIFEST).read_bytes():
            raise BadInput(f"--output_dir {directory}: holds another export; use another directory")
        if exists:
            verify(directory)
            return directory
        manifest = _manifest_to_pull(path.parent, name)
        commit, names = path.parent.name, sorted(manifest.files)
        snapshot = partial(snapshot_download, name, revision=commit, allow_patterns=names)
        cache = Path(fetch(snapshot, name, revision))
    with directories.new_directory(directory) as unfinished:
        try:
            _copy_verified(cache, unfinished, manifest)
            verify(unfinished)
        except BadInput as problem:
            shutil.rmtree(unfinished, ignore_errors=True)
            why = str(problem).replace(str(unfinished), name)
            raise BadInput(
                f"{why}; nothing was kept: if the download was damaged, delete {cache} and "
                "pull again"
            ) from problem
    return directory


def _manifest_to_pull(cache: Path, name: str) -> Manifest:
    """Return a repository's export.json, with itself among its files. Raises BadInput."""
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


def _copy_verified(cache: Path, directory: Path, manifest: Manifest) -> None:
    """Copy the files of a manifest out of the Hub's cache, except an edited card.

    Raises BadInput for a file that is missing, was altered, or is a link out of the repository.
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
        if not manifest.is_intact(directory, name):
            if not is_card(name):
                raise BadInput(f"{target}: was altered after it was pushed; push or pull again")
            target.unlink()


def verify(directory: Path) -> None:
    """Raise BadInput unless ticket and weights are intact, and pruned weights are zero."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export.loading import load_dense

    ticket = Ticket.load(directory / "ticket.safetensors")
    for folder in (directory, directory / "compact"):
        model = load_dense(folder)
        weights, masks = prunable(model), ticket.masks_for(model)
        if wrong := [name for name, mask in masks.items() if weights[name][~mask].any()]:
            raise BadInput(
                f"{folder}: {wrong[0]} is not zero where the ticket prunes it; "
                "pull another revision"
            )
