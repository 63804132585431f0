"""Where this rank's piece of a parameter lies, under each engine."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from lth_scale.config.errors import BadInput


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter: `size` elements of the whole, flattened row-major, from `offset` on.

    The callables give flat views of live memory, without padding: `master`, the fp32 weights that the optimizer
    updates; `working`, the weights that the forward pass reads (the master itself where there is one copy);
    `gradient`, what the next step will see, or None outside backward … step; `moments` of the optimizer by their
    keys (exp_avg …), those of the weights' shape alone. A piece may be empty.
    """

    shape: torch.Size
    offset: int
    size: int
    master: Callable[[], Tensor]
    working: Callable[[], Tensor]
    gradient: Callable[[], Tensor | None]
    moments: Callable[[], dict[str, Tensor]]

    def cut(self, whole: Tensor) -> Tensor:
        """The same part of a tensor of the parameter's shape."""
        return whole.reshape(-1)[self.offset : self.offset + self.size]


def replicated(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Piece:
    """One process and DDP: every rank holds the whole."""
    return Piece(
        weight.shape,
        offset=0,
        size=weight.numel(),
        master=lambda: weight.detach().view(-1),
        working=lambda: weight.detach().view(-1),
        gradient=lambda: None if weight.grad is None else weight.grad.view(-1),
        moments=lambda: {key: value.view(-1) for key, value in _states(optimizer, weight).items()},
    )


def fsdp2(weight: DTensor, optimizer: torch.optim.Optimizer) -> Piece:
    """FSDP2: whole rows, evenly; the last ranks may have none. The bf16 copy lives only while a layer runs."""
    if tuple(weight.placements) != (Shard(0),):
        raise BadInput(
            f"FSDP2: parameters lie as {weight.placements}; use one mesh dimension, sharded on rows"
        )
    rows = -(-weight.shape[0] // weight.device_mesh.size())
    width = weight.numel() // max(1, weight.shape[0])

    def local(tensor: Tensor) -> Tensor:
        with torch.no_grad():
            return tensor.to_local().view(-1)  # type: ignore[attr-defined]

    return Piece(
        weight.shape,
        offset=min(rows * weight.device_mesh.get_local_rank(), weight.shape[0]) * width,
        size=local(weight).numel(),
        master=lambda: local(weight),
        working=lambda: local(weight),
        gradient=lambda: None if weight.grad is None else local(weight.grad),
        moments=lambda: {key: local(value) for key, value in _states(optimizer, weight).items()},
    )


def _states(optimizer: Any, weight: Tensor) -> dict[str, Tensor]:
    """The optimizer's states of `weight` that have its shape and hold numbers (not 8-bit codes)."""
    states = getattr(optimizer, "optimizer", optimizer).state.get(weight, {})
    return {
        key: value
        for key, value in states.items()
        if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point()
    }


def zero12(weight: nn.Parameter, zero: Any) -> Piece:
    """ZeRO-1 and 2: a run of the flattened group, whose fp32 master only this rank has; often nothing."""
    link = weight._hp_mapping  # type: ignore[attr-defined]  # deepspeed 0.19.8: None where this rank owns nothing of it
    if link is None:
        return _nothing(weight.shape, weight)
    offset, size, at = (
        link.lp_fragment_address.start,
        link.lp_fragment_address.numel,
        link.hp_fragment_address.start,
    )
    flat = zero.single_partition_of_fp32_groups[link.param_group_index]

    def gradient() -> Tensor | None:
        with suppress(ValueError):  # there is none now
            return link.get_lp_grad_fragment(weight._index_in_param_group).view(-1)  # type: ignore[attr-defined]
        return None

    return Piece(
        weight.shape,
        offset,
        size,
        master=lambda: flat.detach().narrow(0, at, size),
        working=lambda: weight.detach().view(-1).narrow(0, offset, size),
        gradient=gradient,
        moments=lambda: {
            key: value.narrow(0, at, size) for key, value in _states(zero.optimizer, flat).items()
        },
    )


def zero3(weight: nn.Parameter, zero: Any) -> Piece:
    """ZeRO-3: an even run of each parameter. What fills up the last ranks' runs is uninitialised memory."""
    share, numel = weight.partition_numel(), weight.ds_numel  # type: ignore[attr-defined]
    offset = min(share * dist.get_rank(weight.ds_process_group), numel)  # type: ignore[attr-defined]
    size = min(share, numel - offset)
    group, at, _ = zero.grad_position[zero.get_param_id(weight)]  # deepspeed 0.19.8
    flat = zero.fp32_partitioned_groups_flat[group]
    index = next(i for i, other in enumerate(zero.fp16_groups[group]) if other is weight)

    def gradient() -> Tensor | None:
        if zero.offload_optimizer:
            return None if flat.grad is None else flat.grad.narrow(0, at, size)
        averaged = zero.averaged_gradients.get(group)
        return None if averaged is None else averaged[index].view(-1).narrow(0, 0, size)

    return Piece(
        weight.ds_shape,  # type: ignore[attr-defined]
        offset,
        size,
        master=lambda: flat.detach().narrow(0, at, size),
        working=lambda: weight.ds_tensor.detach().view(-1).narrow(0, 0, size),  # type: ignore[attr-defined]
        gradient=gradient,
        moments=lambda: {
            key: value.narrow(0, at, size) for key, value in _states(zero.optimizer, flat).items()
        },
    )


def _nothing(shape: torch.Size, like: Tensor) -> Piece:
    empty = torch.empty(0, device=like.device)
    return Piece(shape, 0, 0, lambda: empty, lambda: empty.to(like.dtype), lambda: None, dict)


PIECES: dict[str, Callable[..., Piece]] = {
    "replicated": replicated,
    "fsdp2": fsdp2,
    "zero1": zero12,
    "zero2": zero12,
    "zero3": zero3,
}
