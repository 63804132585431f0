"""lth_scale: find, train, test and ship lottery tickets in pre-trained encoders.

Chen et al., NeurIPS 2020. Names are imported on first use, so that `--help` and bad input do not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lth_scale.config.version import __version__
from lth_scale.pruning import registries as _pruning
from lth_scale.shipping.export import registry as _formats
from lth_scale.shipping.speed import registry as _backends
from lth_scale.tasks import registry as _tasks
from lth_scale.tracking import trackers as _trackers
from lth_scale.training import optimizers as _optimizers

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket
    from lth_scale.shipping.export.export import load_exported

# The module that defines each public name.
NAMES = {
    "Ticket": "pruning.ticket",
    "chance_similarity": "pruning.similarity",
    "digest": "pruning.prunable_set",
    "base_digest": "pruning.prunable_set",
    "prune": "pruning.threshold",
    "smallest": "pruning.threshold",
    "prunable": "pruning.prunable_set",
    "sparsities": "pruning.registries",
    "resolve": "config.resolution",
    "Training": "config.arguments",
    "Arguments": "config.arguments",
    "Transfer": "config.arguments",
    "BadInput": "config.errors",
    "load_exported": "shipping.export.export",
    "push": "shipping.hub",
    "pull": "shipping.pull",
    "verify": "shipping.pull",
    "verdict": "science.noninferiority",
    "register_score": "pruning.registries",
    "register_schedule": "pruning.registries",
    "register_pattern": "pruning.registries",
    "register_control": "pruning.registries",
    "register_task": "tasks.registry",
    "register_tracker": "tracking.trackers",
    "register_optimizer": "training.optimizers",
    "register_engine": "distributed.engines",
    "register_format": "shipping.export.registry",
    "register_backend": "shipping.speed.registry",
}
MODULES = {
    "controls": "pruning.controls",
    "masking": "pruning.masking",
    "matching": "science.matching",
}
# The modules that fill the registries of flags.
REGISTERED = (_pruning, _tasks, _trackers, _optimizers, _formats, _backends)
__all__ = ["Ticket", "__version__", "load_exported"]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"lth_scale.{MODULES[name]}")
    if name in NAMES:
        return getattr(import_module(f"lth_scale.{NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
