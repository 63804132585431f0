"""Backends of the speed check, one line an entry. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lth_scale.shipping.export.onnx_graph import Forward


@dataclass(frozen=True)
class Setup:
    """What a backend is built from.

    model: fp32, in eval mode, on the CPU; backends copy it. examples: inputs (int64, (n, length),
    on the CPU) to trace and calibrate with. folder: for files that backends share. device: cpu or
    cuda.
    """

    model: "PreTrainedModel"
    examples: "list[dict[str, Tensor]]"
    threads: int
    folder: Path
    device: str = "cpu"


class Backend(Protocol):
    """A way to run a network whose pruned weights are zero."""

    def unavailable(self, setup: Setup) -> str:
        """Why it cannot run this network here, in one line, or "". May raise BadInput instead."""

    def build(self, setup: Setup) -> "Forward":
        """A function of inputs by name that returns the output tensors in order."""


@dataclass(frozen=True)
class BackendSpec:
    """A value of --backends.

    make: returns its `Backend`. precision: fp32, bf16, fp16 or int8, among which it is compared.
    sparse: it skips zeros, and is compared with the best dense one.
    """

    precision: str
    make: Callable[[], Backend]
    devices: tuple[str, ...] = ("cpu",)
    sparse: bool = False


EAGER = "dense-eager"  # the reference of the outputs
BACKENDS: Registry[BackendSpec] = Registry("backend")
register_backend = BACKENDS.register
ROOM = "lth_scale.shipping.speed.backends"
CPU_AND_GPU = ("cpu", "cuda")


def _add(name: str, precision: str, cls: str, *options: Any, **facts: Any) -> None:
    make = partial(lazy(f"{ROOM}.{cls}"), *options)
    BACKENDS.register(name, BackendSpec(precision, make, **facts))


_add(EAGER, "fp32", "dense:EagerBackend", devices=CPU_AND_GPU)
_add("dense-compiled", "fp32", "dense:CompiledBackend", "float32", devices=CPU_AND_GPU)
_add("dense-bf16", "bf16", "dense:CompiledBackend", "bfloat16", devices=CPU_AND_GPU)
_add("dense-fp16", "fp16", "dense:CompiledBackend", "float16", devices=("cuda",))
_add("onnxruntime-fp32", "fp32", "graphs:OnnxRuntimeBackend", False)
_add("onnxruntime-int8", "int8", "graphs:OnnxRuntimeBackend", True)
_add("openvino-fp32", "fp32", "graphs:OpenVinoBackend", False)
_add("openvino-int8", "int8", "graphs:OpenVinoBackend", True)
_add("csr", "fp32", "sparse:CsrBackend", sparse=True)
_add("native-fp32", "fp32", "sparse:NativeBackend", "float32", sparse=True)
_add("native-int8", "int8", "sparse:NativeBackend", "int8", sparse=True)
_add("2:4", "fp16", "sparse:SemiStructuredBackend", devices=("cuda",), sparse=True)
