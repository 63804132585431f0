"""The formats: how a network's tensors lie on disk, and what the network becomes when it is read back."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.prunable_set import check_linear, prunable
from lth_scale.tracking import console

Parts = dict[str, Tensor]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DENSER = 0.85  # the sparsity from which a product with a CSR matrix is faster than a dense one


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, but each tied tensor once: under its first name."""
    state = model.state_dict()
    names = (*dict(model.named_parameters()), *dict(model.named_buffers()))
    return {name: state[name] for name in names if name in state}


def targets(model: nn.Module) -> dict[str, str]:
    """The prunable weights: names in the state dict → names in `prunable`."""
    short = {id(weight): name for name, weight in prunable(model).items()}
    return {
        name: short[id(weight)] for name, weight in model.named_parameters() if id(weight) in short
    }


def present(weight: Tensor) -> Tensor:
    """Bool, of the weight's shape: False where all its bits are 0, so that -0.0 is kept."""
    return weight.view(BITS[weight.dtype]) != 0


def pack_compact(weight: Tensor) -> Parts:
    """bits: uint8 ⌈n/8⌉, little-endian; values: what they keep, in the order of the rows."""
    mask = present(weight.contiguous())
    bits = numpy.packbits(mask.numpy().reshape(-1), bitorder="little")
    return {"bits": torch.from_numpy(bits), "values": weight[mask]}


def unpack_compact(parts: Parts, shape: torch.Size) -> Tensor:
    """The dense matrix. Raises ValueError where bits, values and shape do not agree."""
    (bits, values), count = _named(parts, "bits", "values"), shape.numel()
    if bits.dtype != torch.uint8 or bits.shape != ((count + 7) // 8,):
        raise ValueError(f"its bits are not those of {tuple(shape)}")
    mask = numpy.unpackbits(bits.numpy(), bitorder="little")
    if mask[count:].any() or values.shape != (int(mask.sum()),) or values.dtype not in BITS:
        raise ValueError("its bits and values do not agree")
    weight = torch.zeros(shape, dtype=values.dtype)
    weight.view(-1)[torch.from_numpy(mask[:count].view(bool))] = values
    return weight


def _named(parts: Parts, *names: str) -> list[Tensor]:
    if parts.keys() != {*names}:
        raise ValueError(
            f"its parts are {', '.join(sorted(parts)) or 'none'} and not {', '.join(names)}"
        )
    return [parts[name] for name in names]


def pack_csr(weight: Tensor) -> Parts:
    """crow: int32 (rows + 1); col: int32; values: what is not 0, row by row."""
    mask = present(weight.contiguous())
    crow = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return {"crow": crow.int(), "col": mask.nonzero()[:, 1].int(), "values": weight[mask]}


def unpack_csr(parts: Parts, shape: torch.Size) -> Tensor:
    """The dense matrix. Raises ValueError unless the indices rise within each row and fit the shape."""
    crow, col, values = _named(parts, "crow", "col", "values")
    if (crow.dtype, col.dtype, values.dtype) != (
        torch.int32,
        torch.int32,
        torch.float32,
    ) or col.shape != values.shape:
        raise ValueError("its indices and values do not agree")
    if crow.shape != (shape[0] + 1,) or col.dim() != 1 or crow[0] != 0 or crow[-1] != len(col):
        raise ValueError(f"its rows are not those of {tuple(shape)}")
    counts = crow.diff()
    if (counts < 0).any() or ((col < 0) | (col >= shape[1])).any():
        raise ValueError("its indices lie outside")
    flat = torch.arange(shape[0]).repeat_interleave(counts) * shape[1] + col
    if (flat.diff() <= 0).any():
        raise ValueError("its indices do not rise")
    weight = torch.zeros(shape)
    weight.view(-1)[flat] = values
    return weight


class CsrLinear(nn.Module):
    """`nn.Linear` with its weight in CSR: x (…, in_features) → (…, out_features), fp32."""

    weight: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = (
            linear.in_features,
            linear.out_features,
            linear.bias,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            parts = [*pack_csr(linear.weight.detach()).values()]
            csr = torch.sparse_csr_tensor(*parts, size=linear.weight.shape, check_invariants=False)  # type: ignore
        self.register_buffer("weight", csr)

    def forward(self, x: Tensor) -> Tensor:
        """csr @ x.T: F.linear(x, csr) fails in inference mode, and is slower."""
        made = (self.weight @ x.reshape(-1, self.in_features).T).T
        return (made if self.bias is None else made + self.bias).reshape(
            *x.shape[:-1], self.out_features
        )


def to_csr(model: PreTrainedModel) -> PreTrainedModel:
    """Put each prunable Linear's weight into CSR, in place; returns the model. Raises as `check_linear` does."""
    check_linear(model, "--format csr")
    base: Any = base_model(model)
    for name in prunable(model):
        where = name.removesuffix(".weight")
        base.set_submodule(where, CsrLinear(base.get_submodule(where)))
    return model


def check_2_4(model: nn.Module) -> None:
    """Raise BadInput unless each four in a row of every prunable matrix hold two zeros at least."""
    check_linear(model, "--format 2:4")
    for name, weight in prunable(model).items():
        if weight.shape[1] % 4 or ((weight.detach().reshape(-1, 4) != 0).sum(1) > 2).any():
            raise BadInput(
                f"--format 2:4: {name} keeps more than 2 of 4 in a row; find a ticket with "
                "python -m lth_scale.imp --pattern 2:4, or give --format csr"
            )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise BadInput(
            "--format 2:4: needs a CUDA GPU of compute capability 8.0 or more; give --format csr"
        )


def to_semi_structured(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Move the model to the GPU in `dtype` (half precision), the prunable weights for its sparse tensor cores.

    In place; returns the model. Raises BadInput for a matrix that is no 2:4, or of a size that the kernels refuse.
    """
    check_2_4(model)
    base: Any = base_model(nn.Module.to(model, "cuda", dtype))
    for name, weight in prunable(model).items():
        try:
            sparse = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
        except RuntimeError as problem:
            why = str(problem).splitlines()[0]
            raise BadInput(
                f"--format 2:4: {name} cannot be converted ({why}); give --format csr"
            ) from problem
        linear = base.get_submodule(name.removesuffix(".weight"))
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return model


def _install(model: PreTrainedModel, packed: dict[str, Parts]) -> PreTrainedModel:
    from lth_scale.shipping.native import kernels

    if why := kernels.unavailable():
        weights = prunable(model).values()
        sparse = sum(int((each == 0).sum()) for each in weights) >= DENSER * sum(
            each.numel() for each in weights
        )
        console.print_line(
            f"the native kernel cannot run here ({why}); using {'csr' if sparse else 'dense'} products"
        )
        return to_csr(model) if sparse else model
    return kernels.install(model, packed)


def _pack_native(weight: Tensor, dtype: str) -> Parts:
    from lth_scale.shipping.native import kernels

    return kernels.pack_linear(weight, dtype)


def _unpack_native(parts: Parts, shape: torch.Size) -> Tensor:
    from lth_scale.shipping.native import kernels

    return kernels.unpack_linear(parts, shape)


class Packing(NamedTuple):
    """pack(weight, dtype) → parts; unpack(parts, shape) → weight; finish(model, parts by `prunable` name) → model."""

    pack: Callable[[Tensor, str], Parts] | None = None
    unpack: Callable[[Parts, torch.Size], Tensor] | None = None
    finish: Callable[[PreTrainedModel, dict[str, Parts]], Any] | None = None


FORMATS = {
    "dense": Packing(),
    "compact": Packing(lambda weight, dtype: pack_compact(weight), unpack_compact),
    "csr": Packing(
        lambda weight, dtype: pack_csr(weight), unpack_csr, lambda model, packed: to_csr(model)
    ),
    "native": Packing(_pack_native, _unpack_native, _install),
    "2:4": Packing(finish=lambda model, packed: to_semi_structured(model, model.dtype)),
}
