"""Matrices in torch's compressed sparse rows, on disk and as the layers of a network."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.distributed.pieces import base_model
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.formats import tensors
from lth_scale.shipping.export.formats.tensors import Parts, SafetensorsFormat, check_linear

DTYPES = (torch.int32, torch.int32, torch.float32)  # of crow, col and values


def make() -> SafetensorsFormat:
    """Return the format: packed on disk, `CsrLinear` in memory."""
    return SafetensorsFormat(
        lambda weight, dtype: pack_csr(weight),
        unpack_csr,
        lambda model, packed: to_csr(model),
        partial(check_linear, format="csr"),
    )


def pack_csr(weight: Tensor) -> Parts:
    """Pack a matrix as crow, int32 (rows + 1,); col, int32; and values, row by row."""
    mask = tensors.nonzero_bits(weight.contiguous())
    crow = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return {"crow": crow.int(), "col": mask.nonzero()[:, 1].int(), "values": weight[mask]}


def unpack_csr(parts: Parts, shape: torch.Size) -> Tensor:
    """Return the dense matrix. Raises ValueError if indices do not fit the shape or increase."""
    crow, col, values = tensors.take_parts(parts, "crow", "col", "values")
    if (crow.dtype, col.dtype, values.dtype) != DTYPES or col.shape != values.shape:
        raise ValueError("its indices and values do not agree")
    if crow.shape != (shape[0] + 1,) or col.dim() != 1 or crow[0] != 0 or crow[-1] != len(col):
        raise ValueError(f"its rows do not fit the shape {tuple(shape)}")
    counts = crow.diff()
    if (counts < 0).any() or ((col < 0) | (col >= shape[1])).any():
        raise ValueError("its indices are out of range")
    flat = torch.arange(shape[0]).repeat_interleave(counts) * shape[1] + col
    if (flat.diff() <= 0).any():
        raise ValueError("its indices do not increase")
    weight = torch.zeros(shape)
    weight.view(-1)[flat] = values
    return weight


class CsrLinear(nn.Module):
    """`nn.Linear` with its weight in CSR: x (…, in_features) → (…, out_features), fp32."""

    weight: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        crow, col, values = pack_csr(linear.weight.detach()).values()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            weight = torch.sparse_csr_tensor(
                crow, col, values, linear.weight.shape, check_invariants=False
            )
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply csr @ x.T: `F.linear(x, csr)` fails in inference mode and is slower."""
        rows, columns = self.weight.shape
        y = (self.weight @ x.reshape(-1, columns).T).T
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], rows)


def to_csr(model: PreTrainedModel) -> PreTrainedModel:
    """Replace prunable `nn.Linear`s by `CsrLinear`, in place. Raises BadInput as `check_linear`."""
    check_linear(model, "csr")
    base: Any = base_model(model)
    for name in prunable(model):
        path = name.removesuffix(".weight")
        base.set_submodule(path, CsrLinear(base.get_submodule(path)))
    return model
