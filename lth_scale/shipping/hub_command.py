"""What `python -m lth_scale.hub` does: push a run to the Hugging Face Hub, or pull one."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from lth_scale.config.flags import flag
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.hub import push
from lth_scale.shipping.pull import pull


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


@dataclass(frozen=True, kw_only=True)
class PullFlags:
    """The flags of `lth_scale.hub pull`."""

    name: str = flag(
        "a repository that lth_scale pushed to", MISSING, positional=True, metavar="USER/NAME"
    )
    revision: str | None = flag("branch, tag or commit (default: main)", metavar="REVISION")
    output_dir: str | None = flag("a new directory (default: NAME)", metavar="DIR")


def run_push(args: PushFlags) -> None:
    """Push a run and print its files and its address. Raises BadInput."""
    text, sizes = push(args.run, args.hub_model_id, args.private, args.dry_run)
    listing = "\n".join(f"{size / 1e6:10.3f} MB  {name}" for name, size in sizes)
    print(f"{listing}\n\n{text}" if args.dry_run else f"{listing}\n\npushed to  {text}")


def run_pull(args: PullFlags) -> None:
    """Pull a repository and print what it is. Raises BadInput."""
    print(printable(describe(pull(args.name, args.output_dir, args.revision))))


def describe(directory: Path) -> str:
    """Return what a pulled directory is, and how to load it."""
    from lth_scale.pruning.ticket import Ticket

    ticket = Ticket.load(directory / "ticket.safetensors")
    counts = f"{ticket.pruned:,} of {ticket.prunable:,} prunable weights"
    compact = str(directory / "compact")
    return "\n".join(
        [
            f"pulled to  {quoted(directory)}",
            f"ticket     {ticket.sparsity:.2%} ({counts}), {ticket.task}",
            "checked    every digest, and that pruned weights are zero",
            f"load it    AutoModel.from_pretrained({str(directory)!r}), load_exported({compact!r})",
        ]
    )
