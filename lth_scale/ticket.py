"""Print or combine tickets: `python -m lth_scale.ticket runs/mlm/ticket.safetensors`."""

from typing import Any

import lth_scale
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
    if name in ("Ticket", "base_digest", "digest"):  # they import torch
        return getattr(lth_scale, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    exit_on_bad_input(main)
