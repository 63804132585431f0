"""Warnings that one process logs for all. Does not import torch."""

import logging
import os

log = logging.getLogger("lth_scale")


def warn(message: str, *values: object) -> None:
    """Log a warning on the first rank only.

    message, values: as for `logging.Logger.warning`; without values, `%` is not a placeholder.
    """
    if os.environ.get("RANK", "0") == "0":
        log.warning(message, *values)
