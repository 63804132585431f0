"""Dense products of torch, eager and compiled."""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lth_scale.config import caches
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.speed.registry import Setup


@dataclass(frozen=True)
class EagerBackend:
    """torch in fp32, one operator after another."""

    def unavailable(self, setup: Setup) -> str:
        """Never."""
        return ""

    def build(self, setup: Setup) -> Forward:
        """Call a copy of the model."""
        model: nn.Module = copy.deepcopy(setup.model)
        return forward_of(model.to(setup.device), setup.device)


@dataclass(frozen=True)
class CompiledBackend:
    """torch.compile with frozen weights."""

    dtype: str

    def unavailable(self, setup: Setup) -> str:
        """On the CPU a C++ compiler is needed."""
        compiler = os.environ.get("CXX", "g++")
        if setup.device == "cuda" or shutil.which(compiler):
            return ""
        return f"torch.compile needs a C++ compiler, and there is no {compiler}; install g++"

    def build(self, setup: Setup) -> Forward:
        """Compile a copy of the model; it is traced at the first call of each shape."""
        caches.settle(*caches.COMPILERS)
        model: nn.Module = copy.deepcopy(setup.model)
        model = model.to(setup.device, getattr(torch, self.dtype))
        compiled = torch.compile(model, options={"freezing": True})
        return forward_of(compiled, setup.device)


def forward_of(model: Callable[..., ModelOutput], device: str) -> Forward:
    """A model of transformers as a function that returns its output tensors in order."""
    return partial(_forward, model, device)


@torch.no_grad()
def _forward(
    model: Callable[..., ModelOutput], device: str, batch: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return tuple(value for value in outputs.values() if isinstance(value, Tensor))
