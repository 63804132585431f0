"""Tickets on the Hugging Face Hub.

`python -m lth_scale.hub push runs/sst2-bert-base-uncased --hub_model_id user/name`
`python -m lth_scale.hub pull user/name`
"""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config import directories, files
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.hub_access import request, session
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.export.locations import MANIFEST, Place, locate, seal
from lth_scale.shipping.publication import Publication

if TYPE_CHECKING:
    from lth_scale.shipping.card import Licence
    from lth_scale.tracking.run_directory import RunDirectory


PICTURES = ("score_against_sparsity.png", "sparsity_by_layer.png")
PROVENANCE = ("arguments.json", "results.json", "controls.json")
# The files that a push uploads and a pull keeps: weights, settings and what tokenizers of transformers are made of,
# twice; card, scores and pictures. No code, no pickle, no link.
PUSHED = (
    r"(compact/)?\w[\w.-]*\.(safetensors|json|jinja|txt|model|codes|bpe|spm|tiktoken|tokenizer)"
    r"|(compact/)?additional_chat_templates/\w[\w.-]*\.jinja"
    r"|README\.md|\.eval_results/\w[\w.-]*\.yaml|figures/\w[\w.-]*\.png"
)


def push(
    run: str | Path, hub_model_id: str | None = None, private: bool = False, dry_run: bool = False
) -> tuple[str, list[tuple[str, int]]]:
    """Upload a run's last network, its ticket, the compact weights and a card, in one commit.

    run: the --output_dir of a search, of a transfer with --push_to_hub, or a round. Without `hub_model_id` the
    repository is yours, called as the directory. With `dry_run` nothing is uploaded and nobody is asked. Returns the
    address of the commit (with `dry_run` the card), and each file with its bytes. Raises BadInput for what cannot be
    uploaded and for a token that is not taken, Stopped where the Hub fails; then the repository is as it was.
    """
    place, repo = stage_of(str(run)), hub_model_id or Path(run).resolve().name
    check_name(repo)
    root = place.model.absolute().parents[2]
    try:
        directories.check_writable(root)
    except OSError as problem:
        raise BadInput(
            f"{run}: cannot be written ({problem.strerror}), and what is uploaded is made there; give a "
            "copy of it"
        ) from None
    done = root / "hub.json"
    if os.path.lexists(done) and not pushed(done):
        raise BadInput(f"{done}: is there already, and no push wrote it; move it away")
    with session(), directories.temporary_directory(root / "hub") as folder:
        if not dry_run:
            repo = request(lambda: full_name(repo), repo)
        licence = licence_of(Publication(place.run, root), ask=not dry_run)
        fill(folder, place, repo, licence)
        sizes = [
            (path.relative_to(folder).as_posix(), path.stat().st_size)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        if dry_run:
            return (folder / "README.md").read_text(), sizes
        commit = request(lambda: upload(folder, repo, private), repo)
    files.write_json(done, {"hub_model_id": repo, "commit": commit.oid, "url": commit.commit_url})
    return commit.commit_url, sizes


def pushed(path: Path) -> dict[str, str]:
    """What the hub.json of a run says of its last push; {} where there was none, or the file is none of ours."""
    try:
        done = files.read_json(path)
        return done if done.keys() >= {"hub_model_id", "commit", "url"} else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def stage_of(run: str) -> Place:
    """The network and ticket that are uploaded of a run. Raises BadInput."""
    place = locate(run)
    if place.ticket is None or not place.run:
        raise BadInput(
            f"{run}: is no run with a ticket; give the --output_dir of lth_scale.imp, or of "
            "lth_scale.transfer with --push_to_hub"
        )
    return place


def check_name(repo: str) -> None:
    """Raise BadInput unless the name could be one on the Hub."""
    parts = repo.split("/")
    legal = all(
        re.fullmatch(r"[A-Za-z0-9][\w.-]*", part, re.ASCII) and len(part) <= 96 for part in parts
    )
    if (
        len(parts) > 2
        or not legal
        or ".." in repo
        or "--" in repo
        or repo.endswith((".git", "-", "."))
    ):
        raise BadInput(
            f"--hub_model_id {repo}: is no name for a repository; give user/name, of letters, digits, "
            "'-', '_' and '.'"
        )


def check(args: Training) -> None:
    """Before anything is trained: a name that can be, a token that is taken. Raises BadInput.

    A Hub that does not answer is no reason not to train: the upload can be made afterwards.
    """
    if not args.push_to_hub:
        return
    repo = args.hub_model_id or Path(args.output_dir).resolve().name
    check_name(repo)
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        with session():
            request(lambda: full_name(repo), repo, delays=())
    except Stopped as problem:
        from lth_scale.tracking.console import say

        say(f"{problem}; training goes on")


def push_when_done(record: "RunDirectory") -> None:
    """Upload a run that is done, once; on the main process. Raises Stopped, saying how to repeat it."""
    args, done = record.arguments, record.directory / "hub.json"
    if not args.push_to_hub or os.environ.get("RANK", "0") != "0":
        return
    if (before := pushed(done)) and args.hub_model_id in (None, before["hub_model_id"]):
        print(f"on the Hub  {before['url']}", flush=True)
        return
    try:
        print(
            f"on the Hub  {push(record.directory, args.hub_model_id, args.hub_private_repo)[0]}",
            flush=True,
        )
    except (BadInput, Stopped) as problem:
        repo = args.hub_model_id or record.directory.resolve().name
        private = " --private" if args.hub_private_repo else ""
        why = str(problem).partition(": nothing is lost")[0]
        raise Stopped(
            f"--push_to_hub: {why}: nothing is lost: repeat it with python -m lth_scale.hub push "
            f"{quoted(record.directory)} --hub_model_id {repo}{private}"
        ) from problem


def fill(folder: Path, place: Place, repo: str, licence: "Licence") -> None:
    """All that is uploaded: dense and compact weights that were read back, ticket, provenance, pictures, card."""
    with first_imports():
        from lth_scale.shipping import card
        from lth_scale.shipping.export import disk
        from lth_scale.shipping.export.source import load_source

    assert place.ticket is not None
    stage = place.ticket.parent
    run, source = card.Run.at(stage), replace(load_source(str(stage)), path=Path(repo))
    root = run.record.directory
    disk.fill(folder / "compact", source, disk.describe(source, "compact", "float32"))
    disk.fill(folder, source, disk.describe(source, "dense", "float32"))
    run.public.ticket(run.ticket).save(folder / "ticket.safetensors")
    for name in (each for each in PROVENANCE if (root / each).is_file()):
        shutil.copy(root / name, folder / name)
    draw(run, folder / "figures")
    card.write(folder, run, repo, licence)
    leave_out(folder)
    for directory in (folder / "compact", folder):  # the second manifest lists the first
        run.public.rewrite(directory)
        content = files.read_json(directory / MANIFEST)
        seal(
            directory,
            {key: value for key, value in content.items() if key not in ("files", "sha256")},
        )


def leave_out(folder: Path) -> None:
    """Delete the files that a pull would refuse, and say which: a tokenizer may keep some under any name."""
    names = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    if foreign := [name for name in names if not re.fullmatch(PUSHED, name, re.ASCII)]:
        from lth_scale.tracking.console import say

        for name in foreign:
            (folder / name).unlink()
        say(
            printable(
                f"not uploaded, as no pull takes files of such names: {', '.join(map(repr, foreign))}"
            )
        )


def draw(run: Any, folder: Path) -> None:
    """The pictures as a search drew them; of a transfer, or a search that goes on, its scores so far."""
    folder.mkdir()
    for path in (run.record.directory / "figures" / name for name in PICTURES):
        if path.is_file():
            shutil.copy(path, folder)
    if not (folder / PICTURES[0]).is_file():
        from lth_scale.science import figures

        metric, points = next(iter(run.row["eval"])), dict[float, list[float]]()
        for row in run.record.rows("seeds") or run.record.rows():
            points.setdefault(100 * row["sparsity"], []).append(row["eval"][metric])
        lines = {"none": {}, run.control: points}
        png = figures.scores(
            {metric.replace("_", " "): (lines, [])}, figures.SPARSITY, run.args.task
        )
        if png:
            files.write_bytes(folder / PICTURES[0], png)


def licence_of(public: Publication, ask: bool) -> "Licence":
    """The base model's licence, as its card says; `unknown` where it says none, or cannot be asked."""
    from huggingface_hub import HfApi, ModelCard

    from lth_scale.shipping.card import Licence

    base, revision = public.base_model, public.flags.get("model_revision")
    try:
        if base == EMBEDDED:
            return Licence("apache-2.0", "that of lth_scale, whose small BERT this is")
        if public.is_local(base):
            path = (public.directory(base) or Path(base)) / "README.md"
            files.check_regular(path)
            found = ModelCard.load(path).data
        elif not ask:
            return Licence("unknown", f"taken from the card of `{base}` when this is pushed")
        else:
            found = HfApi().model_info(base, revision=revision).card_data
        name = getattr(found, "license", None)
        more = {
            key: str(getattr(found, key))
            for key in ("license_name", "license_link")
            if getattr(found, key, None)
        }
        if isinstance(name, str):
            return Licence(name, "inherited from the base model, whose card says so", more)
    except (
        Exception
    ):  # no card, no network, no such model: what the upload itself needs is asked again
        pass
    return Licence(
        "unknown",
        "the base model's own applies, and its card could not be read or names none; see there",
    )


def full_name(repo: str) -> str:
    """user/name of a repository; asks the Hub who the token belongs to, and so whether it is taken."""
    from huggingface_hub import HfApi

    who = HfApi().whoami()["name"]
    return repo if "/" in repo else f"{who}/{repo}"


def upload(folder: Path, repo: str, private: bool) -> Any:
    """Make the repository where it is new, and one commit of all files. The same again changes nothing."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    hub.create_repo(repo, private=private or None, exist_ok=True)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    return hub.create_commit(repo, operations, commit_message="Upload a ticket with lth_scale")
