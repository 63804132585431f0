"""Engines by Accelerate's distributed type, one line an entry. Does not import torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from lth_scale.distributed.engine import Engine

PrepareEngine = Callable[
    ["Accelerator", "PreTrainedModel", "torch.optim.Optimizer", int, float], "Engine"
]

ENGINES: Registry[PrepareEngine] = Registry("engine")
register_engine = ENGINES.register
register_engine("DEEPSPEED", lazy("lth_scale.distributed.zero:prepare"))
register_engine("FSDP", lazy("lth_scale.distributed.fsdp2:FSDP2Engine"))
replicate = register_engine("NO", lazy("lth_scale.distributed.ddp:ReplicatedEngine"))


def prepare_engine(
    accelerator: "Accelerator",
    model: "PreTrainedModel",
    optimizer: "torch.optim.Optimizer",
    micro_batch: int,
    max_norm: float,
) -> "Engine":
    """Hand model and optimizer to Accelerate, once. Called by all ranks at once.

    micro_batch: rows in a micro-batch of one rank. max_norm: the norm to clip gradients to, or 0.
    A distributed type that is not registered (MULTI_GPU, MULTI_CPU, …) replicates the model.
    Raises BadInput if the launcher's configuration is not supported.
    """
    prepare = ENGINES.get(accelerator.distributed_type.value, replicate)
    return prepare(accelerator, model, optimizer, micro_batch, max_norm)
