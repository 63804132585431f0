"""ONNX files, in fp32 and int8, and networks that run them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lth_scale.shipping.export import onnx_graph
from lth_scale.shipping.export.architectures import class_of
from lth_scale.shipping.export.registry import FORMATS


class OnnxFormat:
    """model.onnx, and model.int8.onnx with dynamic quantization."""

    def check(self, model: nn.Module) -> None:
        """Accept every model; the exporter reports what it does not support."""

    def write(
        self, model: PreTrainedModel, path: Path, dtype: str, example: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Write both files. Returns `outputs`: the name of the class of the outputs, and theirs."""
        onnx_graph.write(model, example, path)
        onnx_graph.quantize(path, path.with_name(FORMATS["onnx"].variants["int8"]))
        with torch.inference_mode():
            outputs = model(**example)
        names = [name for name, value in outputs.items() if isinstance(value, Tensor)]
        return {"outputs": [type(outputs).__name__, *names]}

    def load(
        self, path: Path, config: PreTrainedConfig, manifest: Mapping[str, Any], dense: bool
    ) -> "OnnxModel":
        """Load either file. Raises ValueError if export.json names no class of outputs."""
        class_name, *names = manifest["outputs"]
        module = sys.modules[class_of(config).__module__]
        output_class = getattr(module, class_name, None)
        if not (isinstance(output_class, type) and issubclass(output_class, ModelOutput)):
            raise ValueError(f"{class_name!r} is not a class of outputs")
        forward = onnx_graph.session(path, torch.get_num_threads())
        return OnnxModel(forward, config, output_class, names).eval()


class OnnxModel(nn.Module):
    """An ONNX file that is called as the network it was exported from, on the CPU.

    It has no parameters: it cannot be trained, pruned or saved. output_class, names: what the
    outputs of `session` are returned as.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        session: onnx_graph.Forward,
        config: PreTrainedConfig,
        output_class: type[ModelOutput],
        names: Sequence[str],
    ):
        super().__init__()
        self.session, self.config = session, config
        self.output_class, self.names = output_class, names

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **options: object,
    ) -> ModelOutput | tuple[Any, ...]:
        """Run the network on int64 tensors of shape (batch, sequence).

        Missing masks are all ones, missing token types all zeros. Raises ValueError for any other
        input or option.
        """
        for name, value in options.items():
            if value is not None and value is not False:
                raise ValueError(f"an ONNX export does not support {name}")
        defaults = (torch.ones_like(input_ids), torch.zeros_like(input_ids))
        mask, types = (
            default if given is None else given.long()
            for given, default in zip((attention_mask, token_type_ids), defaults, strict=True)
        )
        batch = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        outputs = self.output_class(**dict(zip(self.names, self.session(batch), strict=True)))
        return outputs.to_tuple() if return_dict is False else outputs
