"""FSDP2: every rank holds some rows of each parameter."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.distributed import compat
from lth_scale.distributed.engine import Engine
from lth_scale.distributed.pieces import Piece, base_model, moments_of


class FSDP2Engine(Engine):
    """The engine of FSDP2. The bf16 copy of a layer's weights exists only while the layer runs."""

    name = "fsdp2"

    @contextmanager
    def preparing(self, model: PreTrainedModel) -> Iterator[None]:
        """Shard layer by layer, and the rest as one group. Raises BadInput."""
        compat.set_fsdp_units(self.accelerator, layer_classes(model))
        with super().preparing(model), compat.one_root_group(model):
            yield

    def find_piece(self, weight: nn.Parameter) -> Piece:
        """Return this rank's rows; the last ranks may have none. Raises BadInput."""
        assert isinstance(weight, DTensor)
        if tuple(weight.placements) != (Shard(0),):
            raise BadInput(
                f"FSDP2: parameters have placements {weight.placements}; use a mesh of one "
                "dimension that shards rows"
            )
        rows = -(-weight.shape[0] // weight.device_mesh.size())
        first_row = min(rows * weight.device_mesh.get_local_rank(), weight.shape[0])
        optimizer = self.torch_optimizer
        return Piece(
            weight.shape,
            offset=first_row * (weight.numel() // max(1, weight.shape[0])),
            size=_flat(weight).numel(),
            master=lambda: _flat(weight),
            working=lambda: _flat(weight),
            gradient=lambda: None if weight.grad is None else _flat(weight.grad),
            moments=lambda: {k: _flat(value) for k, value in moments_of(optimizer, weight).items()},
        )

    def step(self, max_norm: float) -> Tensor | float | None:
        norm = super().step(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def sync(self) -> None:
        """Free gathered parameters, which would be stale; evaluation leaves the root's gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def restored(self, owned: Tensor, value: Tensor) -> Tensor | int:
        """Return a moment as a DTensor laid out as `owned`; a counter as in the base class."""
        if not isinstance(owned, DTensor) or value.shape != owned.to_local().shape:
            return super().restored(owned, value)
        return DTensor.from_local(
            value.to(owned.device),
            owned.device_mesh,
            owned.placements,
            shape=owned.shape,
            stride=owned.stride(),
        )


def _flat(tensor: Tensor) -> Tensor:
    """Return a flat view of this rank's rows of a DTensor."""
    with torch.no_grad():
        return tensor.to_local().view(-1)  # type: ignore[attr-defined]


def layer_classes(model: nn.Module) -> list[str]:
    """Return the classes of the encoder's layers: the modules in its innermost ModuleLists."""
    lists = (module for module in base_model(model).modules() if isinstance(module, nn.ModuleList))
    layers = (layer for stack in lists for layer in stack if not isinstance(layer, nn.ModuleList))
    return sorted({type(layer).__name__ for layer in layers})
