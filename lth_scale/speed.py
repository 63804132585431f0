"""Time networks in every backend on this machine: `python -m lth_scale.speed TARGETS…`."""

from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.shipping.speed.command import run, time_targets
from lth_scale.shipping.speed.flags import Speed, resolve

__all__ = ["COMMAND", "Speed", "main", "time_targets"]

COMMAND = Command(
    name="speed",
    summary="time networks in every backend on this machine",
    flags=Speed,
    run=run,
    resolve=resolve,
    one_process=True,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)
