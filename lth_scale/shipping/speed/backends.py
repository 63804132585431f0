"""How the backends of the speed check are built, and why one cannot be."""

import contextlib
import copy
import io
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lth_scale.config import caches
from lth_scale.config.errors import BadInput
from lth_scale.pruning.prunable_set import not_linear
from lth_scale.shipping.export import onnx_graph
from lth_scale.shipping.export.formats.csr import to_csr
from lth_scale.shipping.export.formats.semi_structured import check_2_4, to_semi_structured
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.native import kernels, modules
from lth_scale.shipping.packages import require
from lth_scale.shipping.speed.registry import Setup

os.environ.setdefault("NNCF_CI", "1")  # or nncf reports its use over the network


def eager(setup: Setup) -> Forward:
    """Build torch in fp32, one operator after another."""
    model: nn.Module = copy.deepcopy(setup.model)
    return _forward_of(model.to(setup.device), setup)


def always(setup: Setup) -> str:
    """Return "": the backend always runs."""
    return ""


def compiled(setup: Setup, dtype: str = "float32") -> Forward:
    """Build torch.compile with frozen weights; it traces at the first call of each shape."""
    caches.ensure_writable(*caches.COMPILERS)
    model: nn.Module = copy.deepcopy(setup.model)
    model = model.to(setup.device, getattr(torch, dtype))
    return _forward_of(torch.compile(model, options={"freezing": True}), setup)


def no_compiler(setup: Setup) -> str:
    """Return whether a C++ compiler is missing, which torch.compile needs on the CPU."""
    compiler = os.environ.get("CXX", "g++")
    if setup.device == "cuda" or shutil.which(compiler):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler}; install g++"


def onnxruntime(setup: Setup, int8: bool = False) -> Forward:
    """Build ONNX Runtime; int8 quantizes activations dynamically."""
    return onnx_graph.session(_quantized_graph(setup) if int8 else _graph(setup), setup.threads)


def no_onnxruntime(setup: Setup) -> str:
    """Raise BadInput if a package is missing."""
    require("onnx", "onnxscript", "onnxruntime")
    return ""


def openvino(setup: Setup, int8: bool = False) -> Forward:
    """Build OpenVINO; int8 quantizes weights and activations, calibrated on the examples."""
    from openvino import Core

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setup.threads,
        "ENABLE_CPU_PINNING": False,
    }
    if not int8:
        options["INFERENCE_PRECISION_HINT"] = "f32"  # the default is bf16 with AMX
    path = _calibrated_graph(setup) if int8 else _graph(setup)
    model = Core().compile_model(path, "CPU", options)
    names = [port.any_name for port in model.inputs]

    def forward(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = model({name: batch[name].numpy() for name in names})
        return tuple(torch.from_numpy(outputs[port].copy()) for port in model.outputs)

    return forward


def no_openvino(setup: Setup) -> str:
    """Raise BadInput if a package is missing."""
    require("openvino", "nncf", "onnx", "onnxscript", extra="openvino")
    return ""


def csr(setup: Setup) -> Forward:
    """Build torch's CSR products."""
    return _forward_of(to_csr(copy.deepcopy(setup.model)), setup)


def not_all_linear(setup: Setup) -> str:
    """Return which matrix is not of `nn.Linear`, the only module that is replaced."""
    for name, kind in not_linear(setup.model).items():
        return f"{name} is a {kind}, and sparse products replace nn.Linear only"
    return ""


def native(setup: Setup, dtype: str) -> Forward:
    """Build the CPU kernel of lth_scale."""
    return _forward_of(modules.convert(copy.deepcopy(setup.model), dtype), setup)


def no_native(setup: Setup) -> str:
    """Return which matrix is not of `nn.Linear`, or why the kernel cannot run."""
    return not_all_linear(setup) or kernels.unavailable()


def semi_structured(setup: Setup) -> Forward:
    """Build sparse tensor cores in fp16."""
    model = to_semi_structured(copy.deepcopy(setup.model), torch.float16)
    return _forward_of(model, setup)


def not_2_4(setup: Setup) -> str:
    """Return which matrix is not 2:4 sparse, or that no GPU supports it."""
    try:
        check_2_4(setup.model)
    except BadInput as problem:
        return str(problem).removeprefix("--format 2:4: ").partition(";")[0]
    return ""


def _forward_of(model: Callable[..., ModelOutput], setup: Setup) -> Forward:
    return partial(_forward, model, setup.device)


@torch.no_grad()
def _forward(
    model: Callable[..., ModelOutput], device: str, batch: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return tuple(value for value in outputs.values() if isinstance(value, Tensor))


def _graph(setup: Setup) -> Path:
    path = setup.folder / "fp32.onnx"
    if not path.exists():
        onnx_graph.write(setup.model, setup.examples[0], path)
    return path


def _quantized_graph(setup: Setup) -> Path:
    path = setup.folder / "int8.onnx"
    if not path.exists():
        onnx_graph.quantize(_graph(setup), path)
    return path


def _calibrated_graph(setup: Setup) -> Path:
    import nncf
    from openvino import Core, save_model

    path = setup.folder / "int8.xml"
    if not path.exists():
        examples = [
            {name: tensor.numpy() for name, tensor in batch.items()} for batch in setup.examples
        ]
        options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(examples)}
        model = Core().read_model(_graph(setup))
        with onnx_graph.quiet(), contextlib.redirect_stdout(io.StringIO()):
            quantized = nncf.quantize(model, nncf.Dataset(examples), **options)
            save_model(quantized, path, compress_to_fp16=False)
    return path
