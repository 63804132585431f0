"""What `python -m lth_scale.ticket` does: print a ticket, or combine two."""

import os
import sys
from dataclasses import MISSING, dataclass
from typing import Any

from lth_scale.config.command import construct
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import flag
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable

OPERATIONS = ("overlap", "union", "intersect")


@dataclass(frozen=True, kw_only=True)
class TicketFlags:
    """The flags of `lth_scale.ticket`."""

    path: str = flag(
        "a ticket.safetensors, or the directory of a run or a round",
        MISSING,
        positional=True,
        metavar="TICKET",
    )
    overlap: str | None = flag(
        "print the fraction of kept weights that OTHER keeps too", metavar="OTHER"
    )
    union: str | None = flag("keep what either keeps; requires --output", metavar="OTHER")
    intersect: str | None = flag("keep what both keep; requires --output", metavar="OTHER")
    output: str | None = flag("new file for the combined ticket", metavar="FILE")
    allow_other_weights: bool = flag("accept an OTHER of other base weights", False)

    @property
    def operation(self) -> str:
        """The first of `OPERATIONS` that is specified, or ""."""
        return next((name for name in OPERATIONS if getattr(self, name)), "")


def resolve(values: dict[str, Any], flags: type[TicketFlags]) -> TicketFlags:
    """Return the checked flags. Raises BadInput for contradictions and an existing --output."""
    args = construct(values, flags)
    first, *others = [name for name in OPERATIONS if getattr(args, name)] or [""]
    if others:
        raise BadInput(
            f"--{others[0]} {getattr(args, others[0])}: not allowed with --{first}; use one of them"
        )
    if bool(args.output) != bool(args.union or args.intersect):
        raise BadInput(
            f"--output {args.output or '(none)'}: requires --union or --intersect, and they "
            "require it; specify both or neither"
        )
    if args.output and os.path.lexists(args.output):
        raise BadInput(
            f"--output {args.output}: already exists, and --{first} writes a new file; specify "
            "another"
        )
    return args


def run(args: TicketFlags) -> None:
    """Print the ticket, or what an operation makes of it and another one. Raises BadInput."""
    with first_imports():
        from lth_scale.pruning import ticket_text
    ticket, path = ticket_text.read_ticket(args.path)
    operation = args.operation
    other = getattr(args, operation) if operation else ""
    if args.overlap:
        text = ticket_text.overlap(ticket, path, other, args.allow_other_weights)
    else:
        if operation:
            ticket = ticket_text.combine(ticket, path, operation, other, args.allow_other_weights)
        text = ticket_text.describe(ticket, args.output or path)
    if args.output:
        try:
            ticket.save(args.output)
        except OSError as problem:
            raise BadInput(
                f"--output {args.output}: cannot be written ({problem}); specify another"
            ) from None
    sys.stdout.write(printable(text) + "\n")
