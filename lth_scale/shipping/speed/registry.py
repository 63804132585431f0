"""Backends of the speed check, one line an entry. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lth_scale.shipping.export.formats.onnx import Forward


@dataclass(frozen=True)
class Setup:
    """What a backend is built from.

    model: fp32, in eval mode, on the CPU; backends copy it. examples: inputs (int64, (n, length),
    on the CPU) to trace and calibrate with. folder: for files that backends share.
    """

    model: "PreTrainedModel"
    examples: "list[dict[str, Tensor]]"
    threads: int
    folder: Path
    device: str = "cpu"  # or cuda


@dataclass(frozen=True)
class Backend:
    """A value of --backends: a way to run a network whose pruned weights are zero.

    build: returns a function of inputs by name, whose results are the outputs in order.
    unavailable: returns why it cannot run, in one line, or ""; may raise BadInput instead. sparse:
    it skips zeros, and is compared with the best of the others.
    """

    precision: str  # fp32, bf16, fp16 or int8
    build: "Callable[[Setup], Forward]"
    unavailable: Callable[[Setup], str]
    devices: tuple[str, ...] = ("cpu",)
    sparse: bool = False


EAGER = "dense-eager"  # the reference of the outputs
BACKENDS: Registry[Backend] = Registry("backend")
register_backend = BACKENDS.register


def _add(name: str, precision: str, build: str, why_not: str, *options: Any, **facts: Any) -> None:
    module = "lth_scale.shipping.speed.backends"
    make, unavailable = lazy(f"{module}:{build}"), lazy(f"{module}:{why_not}")
    entry = Backend(precision, lambda setup: make(setup, *options), unavailable, **facts)
    register_backend(name, entry)


ANY, GPU = ("cpu", "cuda"), ("cuda",)
_add(EAGER, "fp32", "eager", "always", devices=ANY)
_add("dense-compiled", "fp32", "compiled", "no_compiler", devices=ANY)
_add("dense-bf16", "bf16", "compiled", "no_compiler", "bfloat16", devices=ANY)
_add("dense-fp16", "fp16", "compiled", "no_compiler", "float16", devices=GPU)
_add("onnxruntime-fp32", "fp32", "onnxruntime", "no_onnxruntime")
_add("onnxruntime-int8", "int8", "onnxruntime", "no_onnxruntime", True)
_add("openvino-fp32", "fp32", "openvino", "no_openvino")
_add("openvino-int8", "int8", "openvino", "no_openvino", True)
_add("csr", "fp32", "csr", "not_all_linear", sparse=True)
_add("native-fp32", "fp32", "native", "no_native", "float32", sparse=True)
_add("native-int8", "int8", "native", "no_native", "int8", sparse=True)
_add("2:4", "fp16", "semi_structured", "not_2_4", devices=GPU, sparse=True)
