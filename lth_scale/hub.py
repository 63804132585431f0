"""TODO."""

from pathlib import Path

from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import OneLineParser
from lth_scale.config.startup import is_main_process
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.hub import push
from lth_scale.shipping.pull import pull


def listing(sizes: list[tuple[str, int]]) -> str:
    """Files and their sizes, for a terminal."""
    return "\n".join(f"{size / 1e6:10.3f} MB  {name}" for name, size in sizes)


def build_parser() -> OneLineParser:
    """push and pull."""
    parser = OneLineParser(
        prog="lth_scale.hub", description="Tickets on the Hugging Face Hub.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="push | pull")
    about = "Upload a run's network, ticket, compact weights and card, in one commit."
    up = verbs.add_parser("push", help="upload a run", description=about, allow_abbrev=False)
    up.add_argument(
        "run", metavar="RUN", help="--output_dir of a search, or of a transfer with --push_to_hub"
    )
    up.add_argument(
        "--hub_model_id",
        metavar="USER/NAME",
        help="where to (default: yours, called as the directory)",
    )
    up.add_argument(
        "--private", action="store_true", help="make the repository private, where it is new"
    )
    up.add_argument(
        "--dry_run", action="store_true", help="print the files and the card, and upload nothing"
    )
    about = "Download what was pushed, and check every digest."
    down = verbs.add_parser("pull", help="bring one back", description=about, allow_abbrev=False)
    down.add_argument("name", metavar="USER/NAME", help="a repository that lth_scale pushed to")
    down.add_argument("--revision", help="branch, tag or commit (default: main)")
    down.add_argument("--output_dir", help="a directory that is not there yet (default: NAME)")
    return parser


def describe(directory: Path) -> str:
    """What a pulled directory is, and how to load it."""
    from lth_scale.pruning.ticket import Ticket

    ticket = Ticket.load(directory / "ticket.safetensors")
    return "\n".join(
        [
            f"pulled to  {quoted(directory)}",
            f"ticket     {ticket.sparsity:.2%} ({ticket.pruned:,} of {ticket.prunable:,} prunable weights), {ticket.task}",
            "checked    every digest, and that the weights are zero where the ticket prunes",
            f"load it    AutoModel.from_pretrained({str(directory)!r}), load_exported({str(directory / 'compact')!r})",
        ]
    )


def main() -> None:
    """The command line of `lth_scale.hub`."""
    args = build_parser().parse_args()
    if not is_main_process():
        return  # one process of a launcher's is enough
    if args.verb == "pull":
        print(printable(describe(pull(args.name, args.output_dir, args.revision))))
        return
    said, sizes = push(args.run, args.hub_model_id, args.private, args.dry_run)
    print("\n".join([listing(sizes), "", said if args.dry_run else f"pushed to  {said}"]))


if __name__ == "__main__":
    exit_on_bad_input(main)
