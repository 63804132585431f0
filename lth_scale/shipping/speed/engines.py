"""The engines: how each is built from a dense network with zeros in it, and why it cannot be.

Nothing here imports torch before an engine is asked for.
"""

import contextlib
import copy
import importlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config import caches
from lth_scale.config.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lth_scale.shipping.export.onnx import Run


os.environ.setdefault("NNCF_CI", "1")  # or nncf tells its makers over the network that it was used


@dataclass(frozen=True)
class Setup:
    """model: fp32, in eval mode, on the CPU; engines copy it. device: cpu or cuda.

    examples: inputs (int64, n × length, on the CPU) to trace and calibrate with. folder: for files that engines share.
    """

    model: "PreTrainedModel"
    examples: "list[dict[str, Tensor]]"
    threads: int
    folder: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Backend:
    """build(setup) → a function of inputs that returns the outputs in order; missing(setup) → why not, or nothing."""

    build: "Callable[[Setup], Run]"
    precision: str
    missing: Callable[[Setup], str] = lambda setup: ""
    devices: tuple[str, ...] = ("cpu",)
    sparse: bool = False


def missing(backend: Backend, setup: Setup) -> str:
    """Why the engine cannot run this model here, in one line, or nothing."""
    if setup.device not in backend.devices:
        return f"runs on {backend.devices[0]}; give --device {backend.devices[0]}"
    try:
        return backend.missing(setup)
    except BadInput as problem:
        return str(problem)


def _call(model: Any, device: str, batch: "dict[str, Tensor]") -> "tuple[Tensor, ...]":
    import torch

    with torch.no_grad():
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    return tuple(value for value in output.values() if isinstance(value, torch.Tensor))


def _torch(dtype: str, compiled: bool, setup: Setup) -> "Run":
    import torch

    if compiled:
        caches.ensure_writable(*caches.COMPILERS)
    model: Any = copy.deepcopy(setup.model).to(getattr(torch, dtype)).to(setup.device)  # type: ignore[arg-type]
    return partial(
        _call, torch.compile(model, options={"freezing": True}) if compiled else model, setup.device
    )


def _no_compiler(setup: Setup) -> str:
    compiler = os.environ.get("CXX", "g++")
    there = setup.device == "cuda" or shutil.which(compiler)
    return (
        ""
        if there
        else f"torch.compile needs a C++ compiler, and there is no {compiler}; install g++"
    )


def _lacks(extra: str, packages: tuple[str, ...], setup: Setup) -> str:
    from lth_scale.shipping.export import onnx

    onnx.require(*packages, extra=extra)
    return ""


def _onnx_file(int8: bool, setup: Setup) -> Path:
    from lth_scale.shipping.export import onnx

    path = setup.folder / ("int8.onnx" if int8 else "fp32.onnx")
    if not path.exists() and int8:
        onnx.quantize(_onnx_file(False, setup), path)
    elif not path.exists():
        onnx.write(setup.model, setup.examples[0], path)
    return path


def _onnxruntime(int8: bool, setup: Setup) -> "Run":
    from lth_scale.shipping.export import onnx

    return onnx.session(_onnx_file(int8, setup), setup.threads)


def _calibrated(setup: Setup) -> Path:
    """OpenVINO's file with int8 weights and activations, calibrated on the examples."""
    import nncf
    import openvino

    from lth_scale.shipping.export import onnx

    path = setup.folder / "int8.xml"
    if not path.exists():
        data = nncf.Dataset(
            [{name: tensor.numpy() for name, tensor in batch.items()} for batch in setup.examples]
        )
        options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(setup.examples)}
        with onnx.quiet(), contextlib.redirect_stdout(io.StringIO()):
            made = nncf.quantize(
                openvino.Core().read_model(_onnx_file(False, setup)), data, **options
            )
            openvino.save_model(made, path, compress_to_fp16=False)
    return path


def _openvino(int8: bool, setup: Setup) -> "Run":
    import openvino
    import torch

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setup.threads,
        "ENABLE_CPU_PINNING": False,
    }
    options |= (
        {} if int8 else {"INFERENCE_PRECISION_HINT": "f32"}
    )  # or it takes bf16 where there is AMX
    path = _calibrated(setup) if int8 else _onnx_file(False, setup)
    made = openvino.Core().compile_model(path, "CPU", options)
    names = [each.any_name for each in made.inputs]

    def run(batch: "dict[str, Tensor]") -> "tuple[Tensor, ...]":
        found = made({name: batch[name].numpy() for name in names})
        return tuple(torch.from_numpy(found[each].copy()) for each in made.outputs)

    return run


def _converted(module: str, convert: str, options: dict[str, str], setup: Setup) -> "Run":
    """A copy in which module.convert(model, **options) has replaced the Linears."""
    made = getattr(importlib.import_module(module), convert)(copy.deepcopy(setup.model), **options)
    return partial(_call, made, setup.device)


def _semi_structured(setup: Setup) -> "Run":
    import torch

    from lth_scale.shipping.export import formats

    return partial(
        _call, formats.to_semi_structured(copy.deepcopy(setup.model), torch.float16), setup.device
    )


def _unavailable(module: str, setup: Setup) -> str:
    return importlib.import_module(module).unavailable() or _not_linear(setup)


def _not_linear(setup: Setup) -> str:
    from lth_scale.pruning.prunable_set import not_linear

    others = not_linear(setup.model).items()
    return next(
        (
            f"{name} is a {kind}, and sparse products are of nn.Linear alone"
            for name, kind in others
        ),
        "",
    )


def _not_2_4(setup: Setup) -> str:
    from lth_scale.shipping.export import formats

    try:
        formats.check_2_4(setup.model)
    except BadInput as problem:
        return str(problem).removeprefix("--format 2:4: ").partition(";")[0]
    return ""


EAGER = "dense-eager"  # whose logits the others' are compared with
BOTH = ("cpu", "cuda")
ORT = partial(_lacks, "onnx", ("onnx", "onnxscript", "onnxruntime"))
OPENVINO = partial(_lacks, "openvino", ("openvino", "nncf", "onnx", "onnxscript"))
NATIVE = "lth_scale.shipping.native.kernels"
BACKENDS = {
    EAGER: Backend(partial(_torch, "float32", False), "fp32", devices=BOTH),
    "dense-compiled": Backend(partial(_torch, "float32", True), "fp32", _no_compiler, BOTH),
    "dense-bf16": Backend(partial(_torch, "bfloat16", True), "bf16", _no_compiler, BOTH),
    "dense-fp16": Backend(partial(_torch, "float16", True), "fp16", devices=("cuda",)),
    "onnxruntime-fp32": Backend(partial(_onnxruntime, False), "fp32", ORT),
    "onnxruntime-int8": Backend(partial(_onnxruntime, True), "int8", ORT),
    "openvino-fp32": Backend(partial(_openvino, False), "fp32", OPENVINO),
    "openvino-int8": Backend(partial(_openvino, True), "int8", OPENVINO),
    "csr": Backend(
        partial(_converted, "lth_scale.shipping.export.formats", "to_csr", {}),
        "fp32",
        _not_linear,
        sparse=True,
    ),
    **{
        f"native-{name}": Backend(
            partial(_converted, NATIVE, "convert", {"dtype": dtype}),
            name,
            partial(_unavailable, NATIVE),
            sparse=True,
        )
        for name, dtype in (("fp32", "float32"), ("int8", "int8"))
    },
    "2:4": Backend(_semi_structured, "fp16", _not_2_4, ("cuda",), sparse=True),
}
