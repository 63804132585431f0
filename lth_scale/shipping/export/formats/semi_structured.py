"""2:4 sparsity for the sparse tensor cores of a GPU."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.distributed.pieces import base_model
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.formats.tensors import SafetensorsFormat, check_linear


def make() -> SafetensorsFormat:
    """Return the format: dense in half precision on disk, compressed on the GPU."""
    return SafetensorsFormat(
        optimize=lambda model, packed: to_semi_structured(model, model.dtype), check=check_2_4
    )


def check_2_4(model: nn.Module) -> None:
    """Raise BadInput unless all prunable matrices are 2:4 sparse and there is a GPU for it."""
    check_linear(model, "2:4")
    for name, weight in prunable(model).items():
        if weight.shape[1] % 4 or ((weight.detach().reshape(-1, 4) != 0).sum(1) > 2).any():
            raise BadInput(
                f"--format 2:4: {name} keeps more than 2 of 4 weights in a row; find a ticket with "
                "python -m lth_scale.imp --pattern 2:4, or use --format csr"
            )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise BadInput(
            "--format 2:4: needs a CUDA GPU of compute capability 8.0 or higher; "
            "use a machine that has one, or --format csr"
        )


def to_semi_structured(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Move the model to the GPU in half precision and compress its prunable matrices, in place.

    Raises BadInput if a matrix is not 2:4 sparse, or of a size that the GPU's kernels refuse.
    """
    check_2_4(model)
    base: Any = base_model(nn.Module.to(model, "cuda", dtype))
    for name, weight in prunable(model).items():
        try:
            sparse = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
        except RuntimeError as problem:
            why = str(problem).splitlines()[0]
            raise BadInput(
                f"--format 2:4: {name} cannot be converted ({why}); use --format csr"
            ) from problem
        linear = base.get_submodule(name.removesuffix(".weight"))
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return model
