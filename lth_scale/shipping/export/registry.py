"""Export formats, one line an entry. Does not import torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


class Format(Protocol):
    """How a network is checked, written and loaded in one format."""

    def check(self, model: "nn.Module", /) -> None:
        """Raise BadInput if the model cannot be exported, or not on this machine."""

    def write(
        self, model: "PreTrainedModel", path: Path, dtype: str, example: "dict[str, Tensor]"
    ) -> dict[str, Any]:
        """Write the weights to `path`, beside config.json. Raises BadInput if `dtype` overflows.

        example: int64 inputs of shape (batch, sequence). Returns further entries of export.json.
        """

    def load(
        self, path: Path, config: "PreTrainedConfig", manifest: Mapping[str, Any], dense: bool
    ) -> "nn.Module":
        """Load a network in eval mode: in dense fp32 with `dense`, else the one that runs fastest.

        manifest: export.json. Raises ValueError for damaged weights, BadInput if the format cannot
        run here.
        """


@dataclass(frozen=True)
class FormatSpec:
    """A value of --format.

    about: its line in `--help`. make: returns its `Format`. dtypes: of the values on disk, the
    default first. file: holds the weights. variants: further files of the same network, by name,
    which are compared too. is_source: it can be exported to other formats. half: it computes in its
    dtype instead of fp32. packages: required, from the extra `onnx`.
    """

    about: str
    make: Callable[[], Format]
    dtypes: tuple[str, ...]
    file: str
    variants: Mapping[str, str] = field(default_factory=dict)
    is_source: bool = True
    half: bool = False
    packages: tuple[str, ...] = ()

    def compute_dtype(self, dtype: str) -> str:
        """Return the dtype that an export with values in `dtype` computes in."""
        return dtype if self.half else "float32"


FORMATS: Registry[FormatSpec] = Registry("format")
register_format = FORMATS.register


def _add(name: str, about: str, make: str, dtypes: str, file: str = "", **options: Any) -> None:
    file = file or f"{name}.safetensors"
    factory = lazy(f"lth_scale.shipping.export.formats.{make}")
    register_format(name, FormatSpec(about, factory, tuple(dtypes.split()), file, **options))


_add(
    "dense",
    "exact zeros; any from_pretrained loads it",
    "tensors:SafetensorsFormat",
    "float32",
    "model.safetensors",
)
_add(
    "compact",
    "one bit a weight, and the values: the smallest file",
    "compact:make",
    "float32 float16",
)
_add("csr", "torch's sparse CSR tensors, which need no other package", "csr:make", "float32")
_add(
    "native",
    "packed for the CPU kernel of lth_scale: see docs/speed.md",
    "native:make",
    "float32 int8",
)
_add(
    "2:4",
    "sparse tensor cores, for tickets of --pattern 2:4",
    "semi_structured:make",
    "bfloat16 float16",
    "model.safetensors",
    is_source=False,
    half=True,
)
_add(
    "onnx",
    "for ONNX Runtime; writes model.int8.onnx (dynamic int8) too",
    "onnx:OnnxFormat",
    "float32",
    "model.onnx",
    variants={"int8": "model.int8.onnx"},
    is_source=False,
    packages=("onnx", "onnxscript", "onnxruntime"),
)
