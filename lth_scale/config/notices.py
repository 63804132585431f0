"""A line of warning, by one process for all. Does not import torch."""

import logging
import os
from typing import Any

log = logging.getLogger("lth_scale")


def warn(message: str, *values: Any) -> None:
    """Log a warning on the first rank alone. message, values: as `logging.Logger.warning` takes them; a message
    without values is shown as it is, whatever `%` it holds."""
    if os.environ.get("RANK", "0") == "0":
        log.warning(message, *values)
