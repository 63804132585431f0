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


def make() -> SafetensorsFormat:
    """Return the format: packed on disk; in memory too, if the kernel can run."""
    return SafetensorsFormat(pack_linear, unpack_linear, _install_or_fall_back, _check)


def _check(model: nn.Module) -> None:
    check_linear(model, "native")
    kernels.require()


def _install_or_fall_back(model: PreTrainedModel, packed: Mapping[str, Parts]) -> PreTrainedModel:
    """Use the kernel; if it cannot run, log why and use CSR or dense products by the sparsity."""
    if not (why := kernels.unavailable()):
        return modules.install(model, packed)
    weights = prunable(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    is_sparse = zeros >= CSR_SPARSITY * sum(weight.numel() for weight in weights)
    products = "csr" if is_sparse else "dense"
    console.print_line(f"the native kernel cannot run here ({why}); using {products} products")
    return to_csr(model) if is_sparse else model
