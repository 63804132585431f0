"""How the backends of the speed check are built, and why one cannot run."""

import contextlib
import copy
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lth_scale.config import startup
from lth_scale.config.errors import BadInput
from lth_scale.pruning.prunable_set import not_linear
from lth_scale.shipping.export.formats import onnx
from lth_scale.shipping.export.formats.csr import to_csr
from lth_scale.shipping.export.formats.onnx import Forward
from lth_scale.shipping.export.formats.semi_structured import check_2_4, to_semi_structured
from lth_scale.shipping.native import kernels, modules
from lth_scale.shipping.packages import require
from lth_scale.shipping.speed.registry import Setup
from lth_scale.tasks.task import Batch

os.environ.setdefault("NNCF_CI", "1")  # otherwise nncf reports its use over the network


def eager(setup: Setup) -> Forward:
    """Build torch in fp32, one operator after another."""
    return _forward(_copy_of(setup, "float32"), setup)


def always(setup: Setup) -> str:
    """Return ""."""
    return ""


def compiled(setup: Setup, dtype: str = "float32") -> Forward:
    """Build torch.compile with frozen weights; it traces at the first call of each shape."""
    startup.ensure_writable(*startup.COMPILERS)
    return _forward(torch.compile(_copy_of(setup, dtype), options={"freezing": True}), setup)


def no_compiler(setup: Setup) -> str:
    """Return that there is no C++ compiler, which torch.compile needs on the CPU, or ""."""
    compiler = os.environ.get("CXX", "g++")
    if setup.device == "cuda" or shutil.which(compiler):
        return ""
    return f"torch.compile needs a C++ compiler, and there is no {compiler}; install g++"


def onnxruntime(setup: Setup, int8: bool = False) -> Forward:
    """Build ONNX Runtime; int8 quantizes activations dynamically."""
    path = graph = _graph(setup)
    if int8:
        path = graph.with_name("int8.onnx")
        if not path.exists():
            onnx.quantize(graph, path)
    return onnx.session(path, setup.threads)


def no_onnxruntime(setup: Setup) -> str:
    """Raise BadInput if a package is missing."""
    require("onnx", "onnxscript", "onnxruntime")
    return ""


def openvino(setup: Setup, int8: bool = False) -> Forward:
    """Build OpenVINO; int8 quantizes weights and activations, calibrated on the examples."""
    from openvino import Core

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setup.threads}
    options["ENABLE_CPU_PINNING"] = False
    if not int8:
        options["INFERENCE_PRECISION_HINT"] = "f32"  # the default is bf16 with AMX
    path = _calibrated_graph(setup) if int8 else _graph(setup)
    model = Core().compile_model(path, "CPU", options)
    names = [port.any_name for port in model.inputs]

    def forward(batch: Batch) -> tuple[Tensor, ...]:
        outputs = model({name: batch[name].numpy() for name in names})
        return tuple(torch.from_numpy(outputs[port].copy()) for port in model.outputs)

    return forward


def no_openvino(setup: Setup) -> str:
    """Raise BadInput if a package is missing."""
    require("openvino", "nncf", "onnx", "onnxscript", extra="openvino")
    return ""


def csr(setup: Setup) -> Forward:
    """Build torch's CSR products."""
    return _forward(to_csr(copy.deepcopy(setup.model)), setup)


def not_all_linear(setup: Setup) -> str:
    """Return which matrix is not of `nn.Linear`, or ""."""
    for name, kind in not_linear(setup.model).items():
        return f"{name} is a {kind}, and sparse products replace nn.Linear only"
    return ""


def native(setup: Setup, dtype: str) -> Forward:
    """Build the CPU kernel of lth_scale."""
    return _forward(modules.convert(copy.deepcopy(setup.model), dtype), setup)


def no_native(setup: Setup) -> str:
    """Return which matrix is not of `nn.Linear`, or why the kernel cannot run, or ""."""
    return not_all_linear(setup) or kernels.unavailable()


def semi_structured(setup: Setup) -> Forward:
    """Build sparse tensor cores in fp16."""
    return _forward(to_semi_structured(copy.deepcopy(setup.model), torch.float16), setup)


def not_2_4(setup: Setup) -> str:
    """Return which matrix is not 2:4 sparse, or that no GPU supports it, or ""."""
    try:
        check_2_4(setup.model)
    except BadInput as problem:
        return str(problem).removeprefix("--format 2:4: ").partition(";")[0]
    return ""


def _copy_of(setup: Setup, dtype: str) -> nn.Module:
    model: nn.Module = copy.deepcopy(setup.model)
    return model.to(setup.device, getattr(torch, dtype))


def _forward(model: Callable[..., ModelOutput], setup: Setup) -> Forward:
    @torch.no_grad()
    def forward(batch: Batch) -> tuple[Tensor, ...]:
        outputs = model(**{name: tensor.to(setup.device) for name, tensor in batch.items()})
        return tuple(value for value in outputs.values() if isinstance(value, Tensor))

    return forward


def _graph(setup: Setup) -> Path:
    path = setup.folder / "fp32.onnx"
    if not path.exists():
        onnx.write(setup.model, setup.examples[0], path)
    return path


def _calibrated_graph(setup: Setup) -> Path:
    import nncf
    from openvino import Core, save_model

    path = setup.folder / "int8.xml"
    if not path.exists():
        examples = [{name: x.numpy() for name, x in batch.items()} for batch in setup.examples]
        options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(examples)}
        model = Core().read_model(_graph(setup))
        with onnx.quiet(), contextlib.redirect_stdout(io.StringIO()):
            quantized = nncf.quantize(model, nncf.Dataset(examples), **options)
            save_model(quantized, path, compress_to_fp16=False)
    return path
