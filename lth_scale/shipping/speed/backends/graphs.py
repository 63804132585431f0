"""Graph runtimes: ONNX Runtime and OpenVINO, in fp32 and int8."""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lth_scale.shipping.export import onnx_graph
from lth_scale.shipping.export.onnx_graph import Forward
from lth_scale.shipping.packages import require
from lth_scale.shipping.speed.registry import Setup

os.environ.setdefault("NNCF_CI", "1")  # or nncf reports its use over the network


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime; int8 quantizes activations dynamically."""

    int8: bool

    def unavailable(self, setup: Setup) -> str:
        """Raise BadInput if a package is missing."""
        require("onnx", "onnxscript", "onnxruntime")
        return ""

    def build(self, setup: Setup) -> Forward:
        """Start a session on the exported graph."""
        path = quantized_graph(setup) if self.int8 else graph(setup)
        return onnx_graph.session(path, setup.threads)


@dataclass(frozen=True)
class OpenVinoBackend:
    """OpenVINO; int8 quantizes weights and activations, calibrated on the examples."""

    int8: bool

    def unavailable(self, setup: Setup) -> str:
        """Raise BadInput if a package is missing."""
        require("openvino", "nncf", "onnx", "onnxscript", extra="openvino")
        return ""

    def build(self, setup: Setup) -> Forward:
        """Compile the exported graph for the CPU."""
        import openvino

        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": setup.threads,
            "ENABLE_CPU_PINNING": False,
        }
        if not self.int8:
            options["INFERENCE_PRECISION_HINT"] = "f32"  # the default is bf16 with AMX
        path = calibrated_graph(setup) if self.int8 else graph(setup)
        model = openvino.Core().compile_model(path, "CPU", options)
        names = [port.any_name for port in model.inputs]

        def forward(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
            outputs = model({name: batch[name].numpy() for name in names})
            return tuple(torch.from_numpy(outputs[port].copy()) for port in model.outputs)

        return forward


def graph(setup: Setup) -> Path:
    """The model as an ONNX file, exported once a setup."""
    path = setup.folder / "fp32.onnx"
    if not path.exists():
        onnx_graph.write(setup.model, setup.examples[0], path)
    return path


def quantized_graph(setup: Setup) -> Path:
    """The ONNX file with dynamic int8 quantization."""
    path = setup.folder / "int8.onnx"
    if not path.exists():
        onnx_graph.quantize(graph(setup), path)
    return path


def calibrated_graph(setup: Setup) -> Path:
    """OpenVINO's file with int8 weights and activations, calibrated on the examples."""
    import nncf
    import openvino

    path = setup.folder / "int8.xml"
    if path.exists():
        return path
    examples = [
        {name: tensor.numpy() for name, tensor in batch.items()} for batch in setup.examples
    ]
    model = openvino.Core().read_model(graph(setup))
    with onnx_graph.quiet(), contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(examples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(examples),
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return path
