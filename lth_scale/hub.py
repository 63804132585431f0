"""Tickets on the Hugging Face Hub.

`python -m lth_scale.hub push runs/sst2-bert-base-uncased --hub_model_id user/name`
`python -m lth_scale.hub pull user/name`
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lth_scale import caches, files
from lth_scale.arguments import (
    EMBEDDED,
    HUB_NAME,
    BadInput,
    OneLineParser,
    Stopped,
    Training,
    brief,
    exit_on_bad_input,
    first_imports,
    printable,
    quoted,
    without_secrets,
)
from lth_scale.export.places import (
    MANIFEST,
    Place,
    is_card,
    is_taken,
    is_whole,
    locate,
    manifest,
    opened,
    seal,
)
from lth_scale.publishing import Publication

if TYPE_CHECKING:
    from lth_scale.card import Licence
    from lth_scale.record import Record

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
SILENCE = 120.0  # seconds without a byte after which a request is given up
DELAYS = (2, 8)  # seconds before another attempt; the library has its own for most requests
PICTURES = ("score_against_sparsity.png", "sparsity_by_layer.png")
PROVENANCE = ("arguments.json", "results.json", "controls.json")
# The files that a push uploads and a pull keeps: weights, settings and what tokenizers of transformers are made of,
# twice; card, scores and pictures. No code, no pickle, no link.
PUSHED = (
    r"(compact/)?\w[\w.-]*\.(safetensors|json|jinja|txt|model|codes|bpe|spm|tiktoken|tokenizer)"
    r"|(compact/)?additional_chat_templates/\w[\w.-]*\.jinja"
    r"|README\.md|\.eval_results/\w[\w.-]*\.yaml|figures/\w[\w.-]*\.png"
)
Answer = TypeVar("Answer")


class Refused(Exception):
    """What the Hub said no to, or did not say at all, in a line."""

    def __init__(self, why: str, again: bool):
        super().__init__(why)
        self.again = again  # it may go well the next time


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
        files.check_writable(root)
    except OSError as problem:
        raise BadInput(f"{run}: cannot be written ({problem.strerror}), and what is uploaded is made there; give a "
                       "copy of it") from None  # fmt: skip
    done = root / "hub.json"
    if os.path.lexists(done) and not pushed(done):
        raise BadInput(f"{done}: is there already, and no push wrote it; move it away")
    with polite(), files.temporary_directory(root / "hub") as folder:
        if not dry_run:
            repo = _answered(lambda: full_name(repo), repo)
        licence = licence_of(Publication(place.run, root), ask=not dry_run)
        fill(folder, place, repo, licence)
        sizes = [(path.relative_to(folder).as_posix(), path.stat().st_size)
                 for path in sorted(folder.rglob("*")) if path.is_file()]  # fmt: skip
        if dry_run:
            return (folder / "README.md").read_text(), sizes
        commit = _answered(lambda: upload(folder, repo, private), repo)
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
        raise BadInput(f"{run}: is no run with a ticket; give the --output_dir of lth_scale.imp, or of "
                       "lth_scale.transfer with --push_to_hub")  # fmt: skip
    return place


def check_name(repo: str) -> None:
    """Raise BadInput unless the name could be one on the Hub."""
    parts = repo.split("/")
    legal = all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part, re.ASCII) and len(part) <= 96 for part in parts)
    if len(parts) > 2 or not legal or ".." in repo or "--" in repo or repo.endswith((".git", "-", ".")):
        raise BadInput(f"--hub_model_id {repo}: is no name for a repository; give user/name, of letters, digits, "
                       "'-', '_' and '.'")  # fmt: skip


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
        with polite():
            _answered(lambda: full_name(repo), repo, delays=())
    except Stopped as problem:
        from lth_scale.terminal import say

        say(f"{problem}; training goes on")


def push_when_done(record: "Record") -> None:
    """Upload a run that is done, once; on the main process. Raises Stopped, saying how to repeat it."""
    args, done = record.arguments, record.directory / "hub.json"
    if not args.push_to_hub or os.environ.get("RANK", "0") != "0":
        return
    if (before := pushed(done)) and args.hub_model_id in (None, before["hub_model_id"]):
        print(f"on the Hub  {before['url']}", flush=True)
        return
    try:
        print(f"on the Hub  {push(record.directory, args.hub_model_id, args.hub_private_repo)[0]}", flush=True)
    except (BadInput, Stopped) as problem:
        repo = args.hub_model_id or record.directory.resolve().name
        private = " --private" if args.hub_private_repo else ""
        why = str(problem).partition(": nothing is lost")[0]
        raise Stopped(f"--push_to_hub: {why}: nothing is lost: repeat it with python -m lth_scale.hub push "
                      f"{quoted(record.directory)} --hub_model_id {repo}{private}") from problem  # fmt: skip


def fill(folder: Path, place: Place, repo: str, licence: "Licence") -> None:
    """All that is uploaded: dense and compact weights that were read back, ticket, provenance, pictures, card."""
    with first_imports():
        from lth_scale import card
        from lth_scale.export import disk
        from lth_scale.export.source import load_source

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
        seal(directory, {key: value for key, value in content.items() if key not in ("files", "sha256")})


def leave_out(folder: Path) -> None:
    """Delete the files that a pull would refuse, and say which: a tokenizer may keep some under any name."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    if foreign := [name for name in names if not re.fullmatch(PUSHED, name, re.ASCII)]:
        from lth_scale.terminal import say

        for name in foreign:
            (folder / name).unlink()
        say(printable(f"not uploaded, as no pull takes files of such names: {', '.join(map(repr, foreign))}"))


def draw(run: Any, folder: Path) -> None:
    """The pictures as a search drew them; of a transfer, or a search that goes on, its scores so far."""
    folder.mkdir()
    for path in (run.record.directory / "figures" / name for name in PICTURES):
        if path.is_file():
            shutil.copy(path, folder)
    if not (folder / PICTURES[0]).is_file():
        from lth_scale import figures

        metric, points = next(iter(run.row["eval"])), dict[float, list[float]]()
        for row in run.record.rows("seeds") or run.record.rows():
            points.setdefault(100 * row["sparsity"], []).append(row["eval"][metric])
        lines = {"none": {}, run.control: points}
        png = figures.scores({metric.replace("_", " "): (lines, [])}, figures.SPARSITY, run.args.task)
        if png:
            files.write_bytes(folder / PICTURES[0], png)


def licence_of(public: Publication, ask: bool) -> "Licence":
    """The base model's licence, as its card says; `unknown` where it says none, or cannot be asked."""
    from huggingface_hub import HfApi, ModelCard

    from lth_scale.card import Licence

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
        more = {key: str(getattr(found, key)) for key in ("license_name", "license_link") if getattr(found, key, None)}
        if isinstance(name, str):
            return Licence(name, "inherited from the base model, whose card says so", more)
    except Exception:  # no card, no network, no such model: what the upload itself needs is asked again
        pass
    return Licence("unknown", "the base model's own applies, and its card could not be read or names none; see there")


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


@contextmanager
def polite() -> Iterator[None]:
    """Requests that are given up after SILENCE (the library waits for ever), and no bars."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.timeout = SILENCE
        return made

    bars = not are_progress_bars_disabled()
    set_client_factory(client)
    disable_progress_bars()
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    constants.HF_HUB_OFFLINE = asked  # and not because the Hub was out of reach when the data was loaded
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        if bars:
            enable_progress_bars()


def _answered(ask: Callable[[], Answer], repo: str, delays: tuple[int, ...] = DELAYS) -> Answer:
    """What `ask` returns, in some attempts. Raises BadInput where the Hub says no, Stopped where it fails."""
    for delay in (*delays, None):
        try:
            return ask()
        except Exception as problem:  # the library, its HTTP client and its token store raise many kinds
            refused = explain(problem, repo)
            if refused is None:
                raise
            if not refused.again:
                raise BadInput(str(refused)) from problem
            if delay is None:
                raise Stopped(f"{refused}: nothing is lost, and nothing was changed there: run it again") from problem
            time.sleep(delay)
    raise AssertionError("unreachable")


def explain(problem: BaseException, repo: str) -> Refused | None:
    """What an error of the Hub's library means, or None for one that nobody has foreseen."""
    from huggingface_hub import errors

    chain = [problem]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if refused := caches.refused_by_hub_cache(problem):
        return Refused(refused, False)
    where = os.environ.get("HF_ENDPOINT") or "the Hub"
    if any(isinstance(each, errors.LocalTokenNotFoundError) for each in chain):
        return Refused(f"--hub_model_id {repo}: there is no token for {where}; {LOG_IN}", False)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return Refused(f"--hub_model_id {repo}: HF_HUB_OFFLINE is set, so {where} is not asked; unset it", False)
    status = next((each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)), 0)
    if status == 401:
        return Refused(f"--hub_model_id {repo}: {where} does not take the token (401); {LOG_IN}", False)
    if status == 403:
        return Refused(f"--hub_model_id {repo}: the token may not write there (403); give a name of your own, or a "
                       "token with write access", False)  # fmt: skip
    if status in (408, 429) or status >= 500:
        return Refused(f"--hub_model_id {repo}: {where} failed (HTTP {status})", True)
    if status:
        return Refused(f"--hub_model_id {repo}: {where} refused it (HTTP {status}: {_short(problem)}); give another, "
                       "or mend that", False)  # fmt: skip
    kinds = {name for each in chain for name in (kind.__name__ for kind in type(each).__mro__)}
    if kinds & {"TransportError", "ConnectionError", "TimeoutError"}:
        return Refused(f"--hub_model_id {repo}: {where} cannot be reached, or broke off ({_short(problem)})", True)
    return None


def _short(problem: BaseException) -> str:
    return brief(without_secrets(str(problem))) or type(problem).__name__


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
    with polite():
        first = Path(_fetched(lambda: hf_hub_download(name, MANIFEST, revision=revision), name, revision, MANIFEST))
        if there and first.read_bytes() != (out / MANIFEST).read_bytes():
            raise BadInput(f"--output_dir {out}: holds another export; give another")
        if there:
            verify(out)
            return out
        names = pulled(first.parent, name)
        commit = first.parent.name

        def fetch() -> str:
            return snapshot_download(name, revision=commit, allow_patterns=sorted(names))

        cache = Path(_fetched(fetch, name, revision))
    with files.new_directory(out) as made:
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
        raise BadInput(f"{name}: its {MANIFEST} lists {foreign[0]!r}, which no push makes; give another repository")
    before = {f"compact/{MANIFEST}": ""} if "compact/config.json" in listed else {}  # version 0.1.0 did not list it
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
        files.make_directory(target.parent)
        shutil.copyfile(source, target)
        if digest and not is_whole(target, digest):
            if not is_card(name):
                raise BadInput(f"{made}/{name}: was changed since it was pushed; push or pull again")
            target.unlink()


def verify(directory: Path) -> None:
    """Raise BadInput unless ticket and weights are whole, and the weights zero where the ticket prunes."""
    from lth_scale.export import disk
    from lth_scale.prunable import prunable
    from lth_scale.ticket import Ticket

    ticket = Ticket.load(directory / "ticket.safetensors")
    for folder in (directory, directory / "compact"):
        opened(folder)
        model = disk.load(folder, dense=True)
        weights = prunable(model)
        for name, mask in ticket.masks_for(model).items():
            if weights[name][~mask].any():
                raise BadInput(f"{folder}: {name} is not zero where the ticket prunes it; pull another revision")


def ticket_file(name: str, revision: str | None = None) -> Path:
    """ticket.safetensors of a repository, in the Hub's cache. Raises BadInput, and Stopped where the Hub fails."""
    from huggingface_hub import hf_hub_download

    check_source(name, revision)
    with polite():
        return Path(_fetched(lambda: hf_hub_download(name, "ticket.safetensors", revision=revision), name, revision))


def check_source(name: str, revision: str | None) -> None:
    """Raise BadInput for what cannot be a repository or a revision of it."""
    if not re.fullmatch(HUB_NAME, name, re.ASCII) or ".." in name:
        raise BadInput(f"{name}: is no repository of the Hub; give user/name")
    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) or ".." in revision):
        raise BadInput(f"--revision {revision}: is no branch, tag or commit; give one")


def _fetched(fetch: Callable[[], Answer], name: str, revision: str | None, file: str = "ticket.safetensors") -> Answer:
    """As `_answered`, for a download: a repository, revision or file that is not there is told apart."""
    from huggingface_hub import errors

    def attempt() -> Answer:
        try:
            return fetch()
        except errors.RevisionNotFoundError as problem:
            raise BadInput(f"--revision {revision}: {name} has none of that name; give another") from problem
        except errors.RemoteEntryNotFoundError as problem:
            raise BadInput(f"{name}: holds no {file}; give a repository that lth_scale pushed") from problem
        except errors.RepositoryNotFoundError as problem:
            raise BadInput(f"{name}: is not on the Hub, or private; check the name, or {LOG_IN}") from problem

    try:
        return _answered(attempt, name)
    except (BadInput, Stopped) as problem:
        raise type(problem)(str(problem).replace("--hub_model_id ", "")) from problem


def listing(sizes: list[tuple[str, int]]) -> str:
    """Files and their sizes, for a terminal."""
    return "\n".join(f"{size / 1e6:10.3f} MB  {name}" for name, size in sizes)


def build_parser() -> OneLineParser:
    """push and pull."""
    parser = OneLineParser(prog="lth_scale.hub", description="Tickets on the Hugging Face Hub.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="push | pull")
    about = "Upload a run's network, ticket, compact weights and card, in one commit."
    up = verbs.add_parser("push", help="upload a run", description=about, allow_abbrev=False)
    up.add_argument("run", metavar="RUN", help="--output_dir of a search, or of a transfer with --push_to_hub")
    up.add_argument("--hub_model_id", metavar="USER/NAME", help="where to (default: yours, called as the directory)")
    up.add_argument("--private", action="store_true", help="make the repository private, where it is new")
    up.add_argument("--dry_run", action="store_true", help="print the files and the card, and upload nothing")
    about = "Download what was pushed, and check every digest."
    down = verbs.add_parser("pull", help="bring one back", description=about, allow_abbrev=False)
    down.add_argument("name", metavar="USER/NAME", help="a repository that lth_scale pushed to")
    down.add_argument("--revision", help="branch, tag or commit (default: main)")
    down.add_argument("--output_dir", help="a directory that is not there yet (default: NAME)")
    return parser


def describe(directory: Path) -> str:
    """What a pulled directory is, and how to load it."""
    from lth_scale.ticket import Ticket

    ticket = Ticket.load(directory / "ticket.safetensors")
    return "\n".join([
        f"pulled to  {quoted(directory)}",
        f"ticket     {ticket.sparsity:.2%} ({ticket.pruned:,} of {ticket.prunable:,} prunable weights), {ticket.task}",
        "checked    every digest, and that the weights are zero where the ticket prunes",
        f"load it    AutoModel.from_pretrained({str(directory)!r}), load_exported({str(directory / 'compact')!r})",
    ])  # fmt: skip


def main() -> None:
    """The command line of `lth_scale.hub`."""
    args = build_parser().parse_args()
    if os.environ.get("RANK", "0") != "0":
        return  # one process of a launcher's is enough
    if args.verb == "pull":
        print(printable(describe(pull(args.name, args.output_dir, args.revision))))
        return
    said, sizes = push(args.run, args.hub_model_id, args.private, args.dry_run)
    print("\n".join([listing(sizes), "", said if args.dry_run else f"pushed to  {said}"]))


if __name__ == "__main__":
    exit_on_bad_input(main)
