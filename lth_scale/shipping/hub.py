"""Pushing runs to the Hugging Face Hub. Imports torch and huggingface_hub when it is used."""

import os
import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lth_scale.config import directories, files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, Stopped, is_main_process
from lth_scale.config.flags import flag
from lth_scale.config.hub_access import request, session
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import quoted
from lth_scale.shipping.export.locations import locate
from lth_scale.tracking.console import print_line

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from lth_scale.tracking.run_directory import RunDirectory

Sizes = list[tuple[str, int]]  # names and bytes of files


@dataclass(frozen=True, kw_only=True)
class PushFlags:
    """The flags of `lth_scale.hub push`."""

    run: str = flag(
        "--output_dir of a search, or of a transfer with --push_to_hub",
        MISSING,
        positional=True,
        metavar="RUN",
    )
    hub_model_id: str | None = flag(
        "repository on the Hub (default: your user name and the name of the directory)",
        metavar="USER/NAME",
    )
    private: bool = flag("make a new repository private", False)
    dry_run: bool = flag("print the files and the card, and upload nothing", False)


def run_push(args: PushFlags) -> None:
    """Push a run and print its files and its address. Raises BadInput."""
    text, sizes = push(args.run, args.hub_model_id, args.private, args.dry_run)
    listing = "\n".join(f"{size / 1e6:10.3f} MB  {name}" for name, size in sizes)
    print(f"{listing}\n\n{text}" if args.dry_run else f"{listing}\n\npushed to  {text}")


def push(
    run: str | Path, hub_model_id: str | None = None, private: bool = False, dry_run: bool = False
) -> tuple[str, Sizes]:
    """Upload a run's last network, its ticket, compact weights and a card, in one commit.

    run: the --output_dir of a search, of a transfer with --push_to_hub, or a round. Without
    `hub_model_id` the repository is yours and has the name of the directory. With `dry_run` nothing
    is uploaded and no request is made. Returns the URL of the commit (with `dry_run` the card), and
    the size in bytes of each file. Raises BadInput for what cannot be uploaded and for a token that
    is not accepted, Stopped if the Hub fails; then the repository is as it was.
    """
    location, repo = locate(str(run)), hub_model_id or Path(run).resolve().name
    if location.ticket is None or not location.run:
        raise BadInput(
            f"{run}: not a run with a ticket; use the --output_dir of lth_scale.imp, or of "
            "lth_scale.transfer with --push_to_hub"
        )
    check_name(repo)
    root = location.model.absolute().parents[2]
    record = root / "hub.json"
    with directories.must_be_writable(str(run), "the upload is prepared there: push a copy of it"):
        directories.check_writable(root)
    if os.path.lexists(record) and not _last_push(record):
        raise BadInput(f"{record}: exists and was not written by a push; move it away")
    with first_imports():
        from lth_scale.shipping import repository_files

    with session(), directories.temporary_directory(root / "hub") as folder:
        if not dry_run:
            repo = request(lambda: _full_name(repo), repo)
        repository_files.fill(folder, location.ticket.parent, repo, online=not dry_run)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        sizes = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
        if dry_run:
            return (folder / "README.md").read_text(), sizes
        commit = request(lambda: _upload(folder, sizes, repo, private), repo)
    files.write_json(record, {"hub_model_id": repo, "commit": commit.oid, "url": commit.commit_url})
    return commit.commit_url, sizes


def _last_push(record: Path) -> dict[str, str]:
    """Return the hub.json of a run, or {} unless a push wrote it."""
    try:
        content = files.read_json(record)
        return content if content.keys() >= {"hub_model_id", "commit", "url"} else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _full_name(repo: str) -> str:
    """Return user/name of a repository; asks the Hub for the user, which checks the token."""
    from huggingface_hub import HfApi

    user = HfApi().whoami()["name"]
    return repo if "/" in repo else f"{user}/{repo}"


def _upload(folder: Path, sizes: Sizes, repo: str, private: bool) -> "CommitInfo":
    """Create the repository if it is new, and commit all files in one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    hub.create_repo(repo, private=private or None, exist_ok=True)
    operations = [CommitOperationAdd(name, folder / name) for name, _ in sizes]
    return hub.create_commit(repo, operations, commit_message="Upload a ticket with lth_scale")


def check_name(repo: str) -> None:
    """Raise BadInput unless the Hub accepts the name."""
    legal = re.fullmatch(r"([A-Za-z0-9][\w.-]{,95}/)?[A-Za-z0-9][\w.-]{,95}", repo, re.ASCII)
    if not legal or ".." in repo or "--" in repo or repo.endswith((".git", "-", ".")):
        raise BadInput(
            f"--hub_model_id {repo}: not a valid name of a repository; use user/name, of letters, "
            "digits, '-', '_' and '.'"
        )


def check(args: Training) -> None:
    """Check the name and the token before the training. Raises BadInput; logs if the Hub fails."""
    if not args.push_to_hub:
        return
    repo = args.hub_model_id or Path(args.output_dir).resolve().name
    check_name(repo)
    if not is_main_process():
        return
    try:
        with session():
            request(lambda: _full_name(repo), repo, delays=())
    except Stopped as problem:
        print_line(f"{problem}; training continues")


def push_when_done(run: "RunDirectory") -> None:
    """Upload a finished run once, on the main process. Raises Stopped, with a command to retry."""
    args = run.arguments
    if not args.push_to_hub or not is_main_process():
        return
    before = _last_push(run.directory / "hub.json")
    if before and args.hub_model_id in (None, before["hub_model_id"]):
        print(f"on the Hub  {before['url']}", flush=True)
        return
    try:
        url, _ = push(run.directory, args.hub_model_id, args.hub_private_repo)
    except (BadInput, Stopped) as problem:
        repo = args.hub_model_id or run.directory.resolve().name
        private = " --private" if args.hub_private_repo else ""
        why = str(problem).partition(": nothing is lost")[0]
        raise Stopped(
            f"--push_to_hub: {why}: nothing is lost: repeat it with python -m lth_scale.hub push "
            f"{quoted(run.directory)} --hub_model_id {repo}{private}"
        ) from problem
    print(f"on the Hub  {url}", flush=True)
