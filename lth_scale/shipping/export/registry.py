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

    def check(self, model: "nn.Module") -> None:
        """Raise BadInput if the model cannot be exported, or not on this machine."""

    def write(
        self, model: "PreTrainedModel", path: Path, dtype: str, example: "dict[str, Tensor]"
    ) -> dict[str, Any]:
        """Write the weights to `path`; config.json is in its directory already.

        example: int64 inputs of shape (batch, sequence). Returns further entries of export.json,
        which `load` gets back. Raises BadInput if `dtype` cannot hold a value.
        """

    def load(
        self, path: Path, config: "PreTrainedConfig", manifest: Mapping[str, Any], dense: bool
    ) -> "nn.Module":
        """Load the weights at `path` into a network in eval mode.

        manifest: export.json. With `dense`, return the dense fp32 network instead of the one that
        runs fastest. Raises ValueError for damaged weights, BadInput if the format cannot run here.
        """


@dataclass(frozen=True)
class FormatSpec:
    """A value of --format.

    about: its line in `--help`. make: returns its `Format`. dtypes: of the values on disk, the
    default first. file: holds the weights. variants: further files of the same network, by name;
    their outputs are compared with the source too. is_source: it can be exported to other formats.
    half: it also computes in its dtype, otherwise in fp32. packages: required, from extra `onnx`.
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


def _add(name: str, about: str, implementation: str, **facts: Any) -> None:
    make = lazy(f"lth_scale.shipping.export.formats.{implementation}")
    FORMATS.register(name, FormatSpec(about, make, **facts))


_add(
    "dense",
    "exact zeros; any from_pretrained loads it",
    "tensors:SafetensorsFormat",
    dtypes=("float32",),
    file="model.safetensors",
)
_add(
    "compact",
    "one bit a weight, and the values: the smallest file",
    "compact:compact_format",
    dtypes=("float32", "float16"),
    file="compact.safetensors",
)
_add(
    "csr",
    "torch's sparse CSR tensors, which need no other package",
    "csr:csr_format",
    dtypes=("float32",),
    file="csr.safetensors",
)
_add(
    "native",
    "packed for the CPU kernel of lth_scale: see docs/speed.md",
    "native:native_format",
    dtypes=("float32", "int8"),
    file="native.safetensors",
)
_add(
    "2:4",
    "sparse tensor cores, for tickets of --pattern 2:4",
    "semi_structured:semi_structured_format",
    dtypes=("bfloat16", "float16"),
    file="model.safetensors",
    is_source=False,
    half=True,
)
_add(
    "onnx",
    "for ONNX Runtime; writes model.int8.onnx (dynamic int8) too",
    "onnx:OnnxFormat",
    dtypes=("float32",),
    file="model.onnx",
    variants={"int8": "model.int8.onnx"},
    is_source=False,
    packages=("onnx", "onnxscript", "onnxruntime"),
)
