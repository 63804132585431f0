"""What `python -m lth_scale.ticket` does: print a ticket, or combine two."""

import logging
import os
import shlex
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.command import construct
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import flag
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import as_words, printable, quoted
from lth_scale.pruning.similarity import Shared, by_layer_and_kind

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket

log = logging.getLogger("lth_scale")
OPERATIONS = ("overlap", "union", "intersect")
BAR = 30  # characters


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
        "print how alike the masks are: share of kept weights that OTHER keeps too, |A∩B| ÷ |A∪B|, "
        "and its chance level",
        metavar="OTHER",
    )
    union: str | None = flag("keep what either keeps; requires --output", metavar="OTHER")
    intersect: str | None = flag("keep what both keep; requires --output", metavar="OTHER")
    output: str | None = flag("new file for the combined ticket", metavar="FILE")
    allow_other_weights: bool = flag("accept an OTHER of other base weights", False)


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
            "require it; use both or neither"
        )
    if args.output and os.path.lexists(args.output):
        raise BadInput(
            f"--output {args.output}: already exists, and --{first} writes a new file; use another "
            "file"
        )
    return args


def run(args: TicketFlags) -> None:
    """Print the ticket, or the result of an operation on it and another one. Raises BadInput."""
    with first_imports():
        from lth_scale.pruning.ticket import Ticket
    operation = next((name for name in OPERATIONS if getattr(args, name)), "")
    others = [getattr(args, operation)] if operation else []
    paths = [_ticket_file(text) for text in (args.path, *others)]
    tickets = [Ticket.load(path) for path in paths]
    result: Any = _combine(args, operation, paths, tickets) if operation else tickets[0]
    if operation == "overlap":
        text = describe_shared(result)
    else:
        text = describe(result, args.output or paths[0])
    if args.output:
        try:
            result.save(args.output)
        except OSError as problem:
            raise BadInput(
                f"--output {args.output}: cannot be written ({problem}); use another file"
            ) from None
    sys.stdout.write(printable(text) + "\n")


def _ticket_file(text: str) -> Path:
    path = Path(text)
    return path / "ticket.safetensors" if path.is_dir() else path


def _combine(args: TicketFlags, operation: str, paths: list[Path], tickets: "list[Ticket]") -> Any:
    """The result of a method of `Ticket`. Warns if bases are not compared; errors name the flag."""
    ticket, other = tickets
    name = f"--{operation} {getattr(args, operation)}"
    for path, loaded in zip(paths, tickets, strict=True):
        if not loaded.base_sha256:
            log.warning("%s: has no base_sha256, so bases are not compared", path)
    if args.allow_other_weights and ticket.is_of_other_weights(other.base_sha256):
        log.warning("%s: belongs to other weights (--allow_other_weights)", name)
    combine = ticket.shared if operation == "overlap" else getattr(ticket, operation)
    try:
        return combine(other, args.allow_other_weights)
    except BadInput as problem:
        raise BadInput(f"{name}: {problem}") from None


def describe_shared(counts: dict[str, Shared]) -> str:
    """How alike two masks are by matrix, by layer, by kind of matrix and in all, for a terminal.

    counts: as `Ticket.shared` returns them.
    """
    matrices = {name: shared for name, shared in counts.items() if name != "all"}
    layers, kinds = by_layer_and_kind(matrices)
    rows = {**matrices, **{f"layer {n}": shared for n, shared in layers.items()}, **kinds}
    width = max(map(len, rows))
    lines = [
        f"{name:<{width}}  {shared.share:10.2%}  {shared.similarity:10.2%}  {shared.chance:7.2%}"
        for name, shared in [*rows.items(), ("all", counts["all"])]
    ]
    return "\n".join([f"{'':<{width}}  {'share kept':>10}  similarity   chance", *lines])


def describe(ticket: "Ticket", path: str | Path) -> str:
    """Totals, provenance, and a bar for each matrix, for a terminal."""
    words = shlex.join(
        word
        for name, value in ticket.arguments.items()
        if value is not None and value is not False
        for word in as_words(name, value)
    )
    source = f"{ticket.base_model}{'@' + ticket.base_revision if ticket.base_revision else ''}"
    counts = f"{ticket.pruned:,} of {ticket.prunable:,} prunable weights"
    lines = [
        f"ticket     {quoted(path)}",
        f"sparsity   {ticket.sparsity:.4%} ({counts})",
        f"threshold  |w| ≤ {ticket.threshold:.6g}",
        f"base       {source}",
        f"           base_sha256 {ticket.base_sha256 or 'unknown'}",
        f"θ sha256   {ticket.theta_sha256}",
        f"task       {ticket.task}",
        f"arguments  {words}",
        "",
    ]
    width = max(map(len, ticket.masks), default=0)
    for name, sparsity in ticket.layer_sparsity().items():
        lines.append(f"{name:<{width}}  {'█' * round(sparsity * BAR):·<{BAR}} {sparsity:7.2%}")
    return "\n".join(lines)
