"""The metrics, as modules of `evaluate` that the package carries: by name, `evaluate` would ask the network."""

from pathlib import Path
from typing import Any

import evaluate

from lth_scale.config.errors import BadInput


def load_metric(name: str, config: str | None = None) -> Any:
    """The `evaluate.Metric` of this package called `name`: accuracy, glue (config is the task) or squad.

    Needs no network, and several processes may ask at once: `evaluate` copies the module, under a lock, into its
    modules cache (HF_MODULES_CACHE) and imports it from there. Raises BadInput where that cache cannot be written.
    """
    try:
        return evaluate.load(str(Path(__file__).parent / name), config, keep_in_memory=True)
    except OSError as problem:
        raise BadInput(
            f"HF_MODULES_CACHE {evaluate.config.HF_MODULES_CACHE}: cannot keep the metric {name} "
            f"({problem.strerror or problem}); set it to a directory that can be written"
        ) from problem
