"""Print or combine tickets: `python -m lth_scale.ticket runs/mlm/ticket.safetensors`."""

import os
import sys
from importlib import import_module
from typing import Any

from lth_scale.config.errors import BadInput
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import OneLineParser
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable


def build_parser() -> OneLineParser:
    """The flags of `lth_scale.ticket`, which imports torch."""
    parser = OneLineParser(prog="lth_scale.ticket", description="Print or combine tickets.")
    parser.add_argument("path", help="a ticket.safetensors, or the directory of a run or a round")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--overlap", metavar="OTHER", help="print the share of kept weights that OTHER keeps too"
    )
    how.add_argument("--union", metavar="OTHER", help="keep what either keeps; needs --output")
    how.add_argument("--intersect", metavar="OTHER", help="keep what both keep; needs --output")
    parser.add_argument("--output", metavar="FILE", help="where to write the combined ticket")
    parser.add_argument(
        "--allow_other_weights", action="store_true", help="take an OTHER that is of another base"
    )
    return parser


def main() -> None:
    """Print the ticket that the command line names, or what it has in common with another."""
    args = build_parser().parse_args()
    if bool(args.output) != bool(args.union or args.intersect):
        raise BadInput(
            f"--output {args.output or '(none)'}: goes with --union or --intersect; give both, or neither"
        )
    with first_imports():
        from lth_scale.pruning import ticket_text

    ticket, path = ticket_text.read_ticket(args.path)
    operation = next((name for name in ("union", "intersect") if getattr(args, name)), "")
    if args.output and os.path.lexists(args.output):
        raise BadInput(
            f"--output {args.output}: already exists, and --{operation} writes a new file; "
            "specify another path"
        )
    allow = args.allow_other_weights
    if args.overlap:
        text = ticket_text.overlap(ticket, path, args.overlap, allow)
    else:
        if operation:
            other = getattr(args, operation)
            ticket = ticket_text.combine(ticket, path, operation, other, allow)
        text = ticket_text.describe(ticket, args.output or path)
    if args.output:
        try:
            ticket.save(args.output)
        except OSError as problem:
            raise BadInput(
                f"--output {args.output}: cannot be written ({problem}); specify another path"
            ) from None
    sys.stdout.write(printable(text) + "\n")


def __getattr__(name: str) -> Any:
    if name == "Ticket":  # late: they need torch
        return getattr(import_module("lth_scale.pruning.ticket"), name)
    if name in ("base_digest", "digest"):
        return getattr(import_module("lth_scale.pruning.digests"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    exit_on_bad_input(main)
