"""Print or combine tickets: `python -m lth_scale.ticket runs/mlm/ticket.safetensors`."""

from importlib import import_module
from typing import Any

from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.pruning.ticket_command import TicketFlags, resolve, run

COMMAND = Command(
    name="ticket",
    summary="print a ticket, or combine two",
    flags=TicketFlags,
    run=run,
    resolve=resolve,
)
main = COMMAND.main


def __getattr__(name: str) -> Any:
    if name == "Ticket":  # imports torch
        return getattr(import_module("lth_scale.pruning.ticket"), name)
    if name in ("base_digest", "digest"):
        return getattr(import_module("lth_scale.pruning.digests"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    exit_on_bad_input(main)
