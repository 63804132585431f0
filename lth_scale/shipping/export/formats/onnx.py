"""ONNX files, in fp32 and int8: export, quantization, and networks that run them."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.shipping.export.loading import class_of
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.shipping.packages import require

LARGE = 2**31 - 2**24  # bytes of weights beyond which they do not fit the graph's protobuf file
Forward = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


class OnnxFormat:
    """model.onnx, and model.int8.onnx with dynamic quantization."""

    def check(self, model: nn.Module, /) -> None:
        """Accept every model; the exporter reports what it does not support."""

    def write(
        self, model: PreTrainedModel, path: Path, dtype: str, example: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Write both files. Returns the names of the class of the outputs, and of each."""
        outputs = write(model, example, path)
        quantize(path, path.with_name(FORMATS["onnx"].variants["int8"]))
        return {"outputs": [type(outputs).__name__, *_tensor_names(outputs)]}

    def load(
        self, path: Path, config: PreTrainedConfig, manifest: Mapping[str, Any], dense: bool
    ) -> "OnnxModel":
        """Load either file."""
        return OnnxModel(path, config, manifest["outputs"]).eval()


class OnnxModel(nn.Module):
    """An ONNX file that is called as the network it was exported from, on the CPU.

    It has no parameters: it cannot be trained, pruned or saved. outputs: the names of their class,
    and of each. Raises ValueError if there is no such class.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, config: PreTrainedConfig, outputs: Sequence[str]):
        super().__init__()
        class_name, *self.names = outputs
        output_class = getattr(sys.modules[class_of(config).__module__], class_name, None)
        if not (isinstance(output_class, type) and issubclass(output_class, ModelOutput)):
            raise ValueError(f"{class_name!r} is not a class of outputs")
        self.config, self.output_class = config, output_class
        self.session = session(path, torch.get_num_threads())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **options: object,
    ) -> ModelOutput | tuple[Any, ...]:
        """Run the network on int64 tensors of shape (batch, sequence).

        Missing masks are ones, missing token types zeros. Raises ValueError for any other input.
        """
        for name, value in options.items():
            if value is not None and value is not False:
                raise ValueError(f"an ONNX export does not support {name}")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids.long()
        batch = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        outputs = self.output_class(**dict(zip(self.names, self.session(batch), strict=True)))
        return outputs.to_tuple() if return_dict is False else outputs


def write(model: PreTrainedModel, example: dict[str, Tensor], path: Path) -> ModelOutput:
    """Export `model`, for inputs of any size named as in `example`: int64, (batch, sequence ≥ 2).

    The weights of a model too large for one file are stored in `path`.data. Returns the outputs of
    the example. Raises BadInput if torch.onnx cannot export the model.
    """
    # A batch of 1 would become a constant of the graph.
    example = {name: tensor[:1].expand(2, -1).contiguous() for name, tensor in example.items()}
    try:
        with quiet(), torch.no_grad(), _without_cache(model):
            outputs: ModelOutput = model(**example)
            torch.onnx.export(
                model,
                (),
                str(path),
                kwargs=example,
                input_names=[*example],
                output_names=_tensor_names(outputs),
                dynamo=True,
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in example},
                external_data=sum(weight.nbytes for weight in model.parameters()) > LARGE,
                verbose=False,
            )
    except Exception as problem:  # the exporter raises many kinds
        why = first_line(problem.__cause__ or problem)
        raise BadInput(
            f"{type(model).__name__}: torch.onnx cannot export it ({why}); use another --format"
        ) from problem
    return outputs


def _tensor_names(outputs: ModelOutput) -> list[str]:
    return [name for name, value in outputs.items() if isinstance(value, Tensor)]


def quantize(path: Path, out: Path) -> None:
    """Quantize an ONNX file to int8, by channel, with dynamic activations; zeros stay zeros."""
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
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keep a decoder from returning keys and values, which are not tensors of an ONNX graph."""
    before = getattr(model.config, "use_cache", False)
    if before:
        model.config.use_cache = False
    try:
        yield
    finally:
        if before:
            model.config.use_cache = before
