"""Networks as one file of safetensors, in which prunable matrices may be packed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lth_scale.config import files
from lth_scale.config.errors import BadInput
from lth_scale.pruning.prunable_set import not_linear, prunable
from lth_scale.shipping.export.architectures import accepts, class_of, unique_state
from lth_scale.tasks.loading import quiet

Parts = dict[str, Tensor]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class SafetensorsFormat:
    """A `Format` of one file, described by what it does with the prunable matrices.

    pack: (weight, dtype) → the tensors stored for it; None stores the weight itself. unpack:
    (parts, shape) → the dense weight. optimize: (dense model, parts by the names of `prunable`)
    → the network that runs fastest. check_model: raises BadInput for a model of another structure.
    """

    pack: Callable[[Tensor, str], Parts] | None = None
    unpack: Callable[[Parts, torch.Size], Tensor] | None = None
    optimize: Callable[[PreTrainedModel, Mapping[str, Parts]], PreTrainedModel] | None = None
    check_model: Callable[[nn.Module], None] | None = None

    def check(self, model: nn.Module) -> None:
        """Raise BadInput if the model cannot be exported, or not on this machine."""
        if self.check_model:
            self.check_model(model)

    def write(
        self, model: PreTrainedModel, path: Path, dtype: str, example: Parts
    ) -> dict[str, Any]:
        """Write all tensors, with prunable ones packed. Raises BadInput if `dtype` overflows."""
        names = prunable_names(model)
        stored = torch.float32 if dtype == "int8" else getattr(torch, dtype)
        tensors: Parts = {}
        for name, tensor in unique_state(model).items():
            values = tensor.to(stored) if tensor.is_floating_point() else tensor
            if not values.isfinite().all() and tensor.isfinite().all():
                raise BadInput(
                    f"--dtype {dtype}: values of {name} are out of its range; use another dtype"
                )
            if self.pack and name in names:
                parts = self.pack(values, dtype)
                tensors |= {f"{name}.{part}": data for part, data in parts.items()}
            else:
                tensors[name] = values
        files.write_tensors(path, tensors, {"format": "pt"})
        return {}

    def load(
        self, path: Path, config: PreTrainedConfig, manifest: Mapping[str, Any], dense: bool
    ) -> PreTrainedModel:
        """Load the network. Raises ValueError unless the file fits the config."""
        skeleton, options = make_skeleton(path, config)
        state, packed = read_tensors(path, skeleton, self.unpack)
        with quiet():
            cls: Any = type(skeleton)
            model, info = cls.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=config.dtype,
                output_loading_info=True,
                **options,
            )
        assert not info["missing_keys"], info
        model.eval()
        if dense or not self.optimize:
            return model
        return self.optimize(model, packed).requires_grad_(False)


def prunable_names(model: nn.Module) -> dict[str, str]:
    """Return the prunable weights: name in the state dict → name in `prunable`."""
    short = {id(weight): name for name, weight in prunable(model).items()}
    return {
        name: short[id(weight)] for name, weight in model.named_parameters() if id(weight) in short
    }


def make_skeleton(path: Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the network on the meta device and the options of its constructor; allocates nothing.

    A pooler of which `path` has no tensors is left out.
    """
    cls = class_of(config)
    with safe_open(path, framework="pt") as file:
        names = file.keys()
    if not 0 < config.num_hidden_layers <= len(names):
        raise ValueError(f"config.json asks for {config.num_hidden_layers} layers")
    has_pooler = any(name.startswith("pooler.") for name in names)
    without_pooler = accepts(cls, "add_pooling_layer") and not has_pooler
    options = {"add_pooling_layer": False} if without_pooler else {}
    with torch.device("meta"), quiet():
        return cls(config, **options), options


def read_tensors(
    path: Path, skeleton: PreTrainedModel, unpack: Callable[[Parts, torch.Size], Tensor] | None
) -> tuple[Parts, dict[str, Parts]]:
    """Return the dense state dict, and the parts of packed matrices by their names in `prunable`.

    Raises ValueError, before any tensor is read, unless names and shapes are the skeleton's.
    """
    shapes = {name: tensor.shape for name, tensor in unique_state(skeleton).items()}
    short = prunable_names(skeleton) if unpack else {}
    plain = shapes.keys() - short
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if wrong := [name for name in plain if stored.get(name) != list(shapes[name])]:
            raise ValueError(f"{min(wrong)} is missing, or its shape is not that of config.json")
        parts_of = {name: name.rpartition(".") for name in stored.keys() - plain}
        if wrong := [name for name, (weight, _, _) in parts_of.items() if weight not in short]:
            raise ValueError(f"{min(wrong)} is not part of the network")
        state = {name: file.get_tensor(name) for name in plain}
        packed: dict[str, Parts] = {name: {} for name in short.values()}
        for name, (weight, _, part) in parts_of.items():
            packed[short[weight]][part] = file.get_tensor(name)
    if unpack:
        for name in short:
            state[name] = _unpacked(name, unpack, packed[short[name]], shapes[name])
    return state, packed


def _unpacked(
    name: str, unpack: Callable[[Parts, torch.Size], Tensor], parts: Parts, shape: torch.Size
) -> Tensor:
    try:
        weight = unpack(parts, shape)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from None
    if weight.shape != shape:
        raise ValueError(f"the shape of {name} is not that of config.json")
    return weight


def nonzero_bits(weight: Tensor) -> Tensor:
    """Return the weight's mask: False where all bits are 0, so that -0.0 counts as a value."""
    return weight.view(BITS[weight.dtype]) != 0


def take_parts(parts: Parts, *names: str) -> list[Tensor]:
    """Return the parts in the order of `names`. Raises ValueError if there are others."""
    if parts.keys() != {*names}:
        stored = ", ".join(sorted(parts)) or "none"
        raise ValueError(f"its parts are {stored} instead of {', '.join(names)}")
    return [parts[name] for name in names]


def check_linear(model: nn.Module, format: str) -> None:
    """Raise BadInput if a prunable matrix is not of `nn.Linear`: no sparse product replaces it."""
    for name, kind in not_linear(model).items():
        raise BadInput(
            f"--format {format}: {name} is a {kind}, and sparse products replace nn.Linear only; "
            "use --format compact, dense or onnx"
        )
