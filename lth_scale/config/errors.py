"""Errors, and warnings that the first process logs for all."""

import logging
import os

AGAIN = "run the same command again to resume from what was written last"


class BadInput(ValueError):
    """Invalid user input. The message is one line: the flag, its value and the remedy."""


class Stopped(RuntimeError):
    """A command stopped before its work was done. What it wrote is kept, and it can be resumed."""


class Diverged(Stopped):
    """The training loss is NaN or infinite."""


def is_main_process() -> bool:
    """True in the first process of a launcher, and without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def warn(message: str, *values: object) -> None:
    """Log a warning on the main process; arguments as for `logging.Logger.warning`."""
    if is_main_process():
        logging.getLogger("lth_scale").warning(message, *values)
