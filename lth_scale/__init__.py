"""lth_scale: find, train, test and ship lottery tickets in pre-trained encoders.

Chen et al., NeurIPS 2020. Names are imported when they are first used, so that `--help` and bad
input do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lth_scale.config.version import __version__
from lth_scale.pruning import registries
from lth_scale.tasks import registry
from lth_scale.tracking import trackers

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export.export import load_exported

# Where each public name is defined.
NAMES = {
    "Ticket": "lth_scale.pruning.ticket",
    **dict.fromkeys(("digest", "base_digest"), "lth_scale.pruning.digests"),
    **dict.fromkeys(("prune", "smallest"), "lth_scale.pruning.threshold"),
    "prunable": "lth_scale.pruning.prunable_set",
    "sparsities": "lth_scale.pruning.registries",
    "resolve": "lth_scale.config.resolution",
    **dict.fromkeys(("Training", "Arguments", "Transfer"), "lth_scale.config.arguments"),
    "BadInput": "lth_scale.config.errors",
    "load_exported": "lth_scale.shipping.export.export",
    **dict.fromkeys(("push", "pull", "verify"), "lth_scale.hub"),
}
MODULES = {
    "controls": "lth_scale.pruning.controls",
    "masking": "lth_scale.pruning.masking",
    "matching": "lth_scale.science.matching",
}
__all__ = ["Ticket", "__version__", "load_exported", "registries", "registry", "trackers"]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(MODULES[name])
    if name in NAMES:
        return getattr(import_module(NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
