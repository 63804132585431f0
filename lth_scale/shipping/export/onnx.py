"""ONNX: write a model, quantize the file to int8, run it. The packages of `lth_scale[onnx]` are imported when used."""

import importlib
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

LARGE = 2**31 - 2**24  # bytes of weights that leave no room for the graph in one protobuf file
Run = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def write(model: PreTrainedModel, example: dict[str, Tensor], path: Path) -> None:
    """Write `model` as ONNX: inputs named as in `example`, outputs as the model's, batch and sequence of any size.

    example: int64 (batch, sequence) tensors of 2 tokens or more. A model too large for one file has its weights in
    `path`.data. Raises BadInput where a package is missing or torch.onnx cannot export the model.
    """
    require("onnx", "onnxscript")
    example = {
        name: tensor[:1].expand(2, -1).contiguous() for name, tensor in example.items()
    }  # 1 would become fixed
    large = sum(weight.nbytes for weight in model.parameters()) > LARGE
    try:
        with quiet(), torch.no_grad(), without_cache(model):
            outputs = [
                name for name, value in model(**example).items() if isinstance(value, Tensor)
            ]
            torch.onnx.export(
                model,
                (),
                str(path),
                kwargs=example,
                input_names=[*example],
                output_names=outputs,
                dynamo=True,
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in example},
                external_data=large,
                verbose=False,
            )
    except Exception as problem:  # the exporter raises many kinds
        why = first_line(problem.__cause__ or problem)
        raise BadInput(
            f"{type(model).__name__}: torch.onnx cannot export it ({why}); give another format"
        ) from problem


def quantize(path: Path, out: Path) -> None:
    """Write the ONNX file at `path` with int8 weights, a scale a channel, and activations quantized as they come.

    Zeros stay zeros. Raises BadInput where a package is missing.
    """
    require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {
        "weight_type": QuantType.QInt8,
        "use_external_data_format": Path(f"{path}.data").exists(),
    }
    with quiet():
        quantize_dynamic(path, out, per_channel=True, **options)


def session(path: Path, threads: int) -> Run:
    """The ONNX file as a function on the CPU: inputs by name → the outputs in order, with `threads` threads.

    Inputs that the graph does not have are ignored. Raises BadInput where onnxruntime is missing.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # its threads let others work between calls
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in made.get_inputs()]
    return lambda batch: tuple(
        map(torch.from_numpy, made.run(None, {name: batch[name].numpy() for name in names}))
    )


def require(*packages: str, extra: str = "onnx") -> None:
    """Raise BadInput unless the packages can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as problem:
            raise BadInput(
                f"{package}: cannot be imported ({problem}); pip install 'lth_scale[{extra}]'"
            ) from problem


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
    """Keep a decoder from giving keys and values for a next token, which are no tensors of an ONNX graph."""
    before = getattr(model.config, "use_cache", False)
    if before:
        model.config.use_cache = False
    try:
        yield
    finally:
        if before:
            model.config.use_cache = before
