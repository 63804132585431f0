"""What `lth_scale.ticket` prints of one ticket or of two, and the tickets that it combines."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import as_words, quoted
from lth_scale.pruning.ticket import Ticket

log = logging.getLogger("lth_scale")
BAR = 30  # characters


def describe(ticket: Ticket, path: str | Path) -> str:
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


def read_ticket(text: str) -> tuple[Ticket, Path]:
    """The ticket in a file or a directory, and the path of its file."""
    path = Path(text)
    path = path / "ticket.safetensors" if path.is_dir() else path
    return Ticket.load(path), path


def overlap(ticket: Ticket, path: Path, other: str, allow_other_weights: bool) -> str:
    """The share of a ticket's kept weights that `other` keeps too, a line for each matrix.

    other: the file or directory of a ticket. Raises as `Ticket.overlap`.
    """
    with _pair(ticket, path, "overlap", other, allow_other_weights) as second:
        shares = ticket.overlap(second, allow_other_weights)
    width = max(map(len, shares))
    return "\n".join(f"{name:<{width}}  {share:7.2%}" for name, share in shares.items())


def combine(
    ticket: Ticket, path: Path, operation: str, other: str, allow_other_weights: bool
) -> Ticket:
    """The `union` or `intersect` of a ticket and `other`. Raises as these methods of `Ticket`."""
    method = {"union": Ticket.union, "intersect": Ticket.intersect}[operation]
    with _pair(ticket, path, operation, other, allow_other_weights) as second:
        return method(ticket, second, allow_other_weights)


@contextmanager
def _pair(
    ticket: Ticket, path: Path, operation: str, other: str, allow_other_weights: bool
) -> Iterator[Ticket]:
    """Load the other ticket, warn of what cannot be checked, and name the flag in errors."""
    second, second_path = read_ticket(other)
    for one, file in ((ticket, path), (second, second_path)):
        if not one.base_sha256:
            log.warning("%s: has no base_sha256, so bases are not compared", file)
    if allow_other_weights and ticket.is_of_other_weights(second.base_sha256):
        log.warning("--%s %s: belongs to other weights (--allow_other_weights)", operation, other)
    try:
        yield second
    except BadInput as problem:
        raise BadInput(f"--{operation} {other}: {problem}") from None
