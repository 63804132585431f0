"""Tickets as text, and two tickets combined, for the command line."""

import logging
import shlex
from pathlib import Path
from typing import Any

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import as_words, quoted
from lth_scale.pruning.ticket import Ticket

log = logging.getLogger("lth_scale")


def describe(ticket: Ticket, path: str | Path) -> str:
    """Totals, provenance, and a bar a matrix, for a terminal."""
    given = {
        name: value
        for name, value in ticket.arguments.items()
        if value is not None and value is not False
    }
    source = f"{ticket.base_model}{'@' + ticket.base_revision if ticket.base_revision else ''}"
    lines = [
        f"ticket     {quoted(path)}",
        f"sparsity   {ticket.sparsity:.4%} ({ticket.pruned:,} of {ticket.prunable:,} prunable weights)",
        f"threshold  |w| ≤ {ticket.threshold:.6g}",
        f"base       {source}",
        f"           base_sha256 {ticket.base_sha256 or 'not known'}",
        f"θ sha256   {ticket.theta_sha256}",
        f"task       {ticket.task}",
        "arguments  "
        + shlex.join(word for name, value in given.items() for word in as_words(name, value)),
        "",
    ]
    width = max(map(len, ticket.masks), default=0)
    for name, sparsity in ticket.layer_sparsity().items():
        lines.append(f"{name:<{width}}  {'█' * round(sparsity * 30):·<30} {sparsity:7.2%}")
    return "\n".join(lines)


def with_other(ticket: Ticket, path: Path, how: str, name: str, allow_other_weights: bool) -> Any:
    """What `Ticket.overlap`, `union` or `intersect` makes of two. Says what cannot be told; raises as they do."""
    other, place = ticket_at(name)
    for each, where in ((ticket, path), (other, place)):
        if not each.base_sha256:
            log.warning(
                "%s: has no base_sha256, so it is not checked that both belong to one base", where
            )
    if allow_other_weights and ticket.is_of_other_weights(other.base_sha256):
        log.warning(
            "--%s %s: is a ticket of other weights, which --allow_other_weights takes", how, name
        )
    try:
        return getattr(ticket, how)(other, allow_other_weights)
    except BadInput as problem:
        raise BadInput(f"--{how} {name}: {problem}") from None


def ticket_at(text: str) -> tuple[Ticket, Path]:
    path = Path(text)
    path = path / "ticket.safetensors" if path.is_dir() else path
    return Ticket.load(path), path
