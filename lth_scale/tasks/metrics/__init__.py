"""The metrics, as `evaluate` modules inside the package: loading them needs no network."""

from pathlib import Path
from typing import Any

import evaluate

from lth_scale.config.errors import BadInput


def load_metric(name: str, config: str | None = None) -> Any:
    """Load an `evaluate.Metric` of this package: glue (config: metric names joined by +) or squad.

    Needs no network and may run in several processes at once: `evaluate` copies the module, under a
    lock, into its modules cache (HF_MODULES_CACHE) and imports it from there. Raises BadInput if
    that cache is not writable.
    """
    try:
        return evaluate.load(str(Path(__file__).parent / name), config, keep_in_memory=True)
    except OSError as error:
        raise BadInput(
            f"HF_MODULES_CACHE {evaluate.config.HF_MODULES_CACHE}: cannot store the metric {name} "
            f"({error.strerror or error}); set it to a writable directory"
        ) from error
