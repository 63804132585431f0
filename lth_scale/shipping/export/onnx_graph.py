"""ONNX files: export a model, quantize it to int8, and run it with ONNX Runtime."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.shipping.packages import require

LARGE = 2**31 - 2**24  # bytes of weights beyond which they do not fit the graph's protobuf file
Forward = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def write(model: PreTrainedModel, example: dict[str, Tensor], path: Path) -> None:
    """Export `model` with batch and sequence of any size.

    Inputs are named as in `example` (int64, (batch, sequence), 2 tokens or more), outputs as the
    model's. The weights of a model too large for one file go to `path`.data. Raises BadInput if a
    package is missing or torch.onnx cannot export the model.
    """
    require("onnx", "onnxscript")
    # A batch of 1 would become a constant of the graph.
    example = {name: tensor[:1].expand(2, -1).contiguous() for name, tensor in example.items()}
    large = sum(weight.nbytes for weight in model.parameters()) > LARGE
    try:
        with quiet(), torch.no_grad(), without_cache(model):
            outputs = model(**example).items()
            torch.onnx.export(
                model,
                (),
                str(path),
                kwargs=example,
                input_names=[*example],
                output_names=[name for name, value in outputs if isinstance(value, Tensor)],
                dynamo=True,
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in example},
                external_data=large,
                verbose=False,
            )
    except Exception as problem:  # the exporter raises many kinds
        why = first_line(problem.__cause__ or problem)
        raise BadInput(
            f"{type(model).__name__}: torch.onnx cannot export it ({why}); use another --format"
        ) from problem


def quantize(path: Path, out: Path) -> None:
    """Quantize an ONNX file to int8, with a scale for each channel and dynamic activations.

    Zeros stay zeros. Raises BadInput if a package is missing.
    """
    require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = Path(f"{path}.data").exists()
    with quiet():
        quantize_dynamic(
            path, out, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large
        )


def session(path: Path, threads: int) -> Forward:
    """Return the ONNX file as a function on the CPU: inputs by name → the outputs in order.

    Inputs that the graph does not have are ignored. Raises BadInput if onnxruntime is missing.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin between calls would slow everything else on these cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in graph.get_inputs()]

    def forward(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = graph.run(None, {name: batch[name].numpy() for name in names})
        return tuple(map(torch.from_numpy, outputs))

    return forward


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and logs of exporters off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keep a decoder from returning keys and values, which are no tensors of an ONNX graph."""
    before = getattr(model.config, "use_cache", False)
    if before:
        model.config.use_cache = False
    try:
        yield
    finally:
        if before:
            model.config.use_cache = before
