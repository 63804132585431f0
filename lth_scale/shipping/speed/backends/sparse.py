"""Sparse products: torch's CSR, the kernel of lth_scale, and sparse tensor cores."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from lth_scale.config.errors import BadInput
from lth_scale.pruning.prunable_set import not_linear
from lth_scale.shipping.export.formats.csr import to_csr
from lth_scale.shipping.export.formats.semi_structured import check_2_4, to_semi_structured
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.native import kernels, modules
from lth_scale.shipping.speed.backends.dense import forward_of
from lth_scale.shipping.speed.registry import Setup


def other_matrices(model: nn.Module) -> str:
    """A line on a prunable matrix that is not of `nn.Linear`, or ""."""
    for name, kind in not_linear(model).items():
        return f"{name} is a {kind}, and sparse products replace nn.Linear only"
    return ""


class CsrBackend:
    """torch's CSR matrices in place of the prunable weights."""

    def unavailable(self, setup: Setup) -> str:
        """If a matrix is not of `nn.Linear`."""
        return other_matrices(setup.model)

    def build(self, setup: Setup) -> Forward:
        """Convert a copy of the model."""
        return forward_of(to_csr(copy.deepcopy(setup.model)), setup.device)


@dataclass(frozen=True)
class NativeBackend:
    """The CPU kernel of lth_scale, in float32 or int8."""

    dtype: str

    def unavailable(self, setup: Setup) -> str:
        """If a matrix is not of `nn.Linear`, or the kernel cannot run here."""
        return other_matrices(setup.model) or kernels.unavailable()

    def build(self, setup: Setup) -> Forward:
        """Convert a copy of the model."""
        return forward_of(modules.convert(copy.deepcopy(setup.model), self.dtype), setup.device)


class SemiStructuredBackend:
    """2:4 sparsity on a GPU, in fp16."""

    def unavailable(self, setup: Setup) -> str:
        """If a matrix is not 2:4 sparse, or no GPU supports it."""
        try:
            check_2_4(setup.model)
        except BadInput as problem:
            return str(problem).removeprefix("--format 2:4: ").partition(";")[0]
        return ""

    def build(self, setup: Setup) -> Forward:
        """Convert a copy of the model."""
        model = to_semi_structured(copy.deepcopy(setup.model), torch.float16)
        return forward_of(model, setup.device)
