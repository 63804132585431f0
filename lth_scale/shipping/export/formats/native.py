"""Matrices packed for the CPU kernel of lth_scale."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.formats.csr import to_csr
from lth_scale.shipping.export.formats.tensors import Parts, SafetensorsFormat, check_linear
from lth_scale.shipping.native import kernels, modules
from lth_scale.shipping.native.packing import pack_linear, unpack_linear
from lth_scale.tracking import console

CSR_SPARSITY = 0.85  # from which a product with a CSR matrix is faster than a dense one


def native_format() -> SafetensorsFormat:
    """Describe the format: packed on disk; in memory too, if the kernel can run."""
    return SafetensorsFormat(pack_linear, unpack_linear, install_or_fall_back, check_native)


def check_native(model: nn.Module) -> None:
    """Raise BadInput if a matrix is not of `nn.Linear`, or the kernel cannot run here."""
    check_linear(model, "native")
    kernels.require()


def install_or_fall_back(model: PreTrainedModel, packed: Mapping[str, Parts]) -> PreTrainedModel:
    """Use the kernel; if it cannot run, log why and use CSR or dense products by the sparsity."""
    why = kernels.unavailable()
    if not why:
        return modules.install(model, packed)
    weights = prunable(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    is_sparse = zeros >= CSR_SPARSITY * sum(weight.numel() for weight in weights)
    products = "csr" if is_sparse else "dense"
    console.print_line(f"the native kernel cannot run here ({why}); using {products} products")
    return to_csr(model) if is_sparse else model
