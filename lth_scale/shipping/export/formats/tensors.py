"""Networks as one file of safetensors, in which prunable matrices may be packed."""

from collections.abc import Callable, Collection, Mapping
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
from lth_scale.shipping.export.loading import class_of, pooler_is_optional, unique_state
from lth_scale.tasks.libraries import quiet

Parts = dict[str, Tensor]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class SafetensorsFormat:
    """A `Format` of one file, described by what it does with the prunable matrices.

    pack: (weight, dtype) → the tensors stored for it; None stores the weight itself. unpack:
    (parts, shape) → the dense weight. optimize: (dense model, parts by the names of `prunable`)
    → the network that runs fastest. check: raises BadInput for a model of another structure.
    """

    pack: Callable[[Tensor, str], Parts] | None = None
    unpack: Callable[[Parts, torch.Size], Tensor] | None = None
    optimize: Callable[[PreTrainedModel, Mapping[str, Parts]], PreTrainedModel] | None = None
    check: Callable[[nn.Module], None] = lambda model: None

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
                packed = self.pack(values, dtype)
                tensors |= {f"{name}.{part}": packed[part] for part in packed}
            else:
                tensors[name] = values
        files.write_tensors(path, tensors, {"format": "pt"})
        return {}

    def load(
        self, path: Path, config: PreTrainedConfig, manifest: Mapping[str, Any], dense: bool
    ) -> PreTrainedModel:
        """Load the network. Raises ValueError, before reading a tensor, unless the file fits."""
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            skeleton, options = _skeleton(config, stored)
            shapes = {name: tensor.shape for name, tensor in unique_state(skeleton).items()}
            short = prunable_names(skeleton) if self.unpack else {}
            plain = shapes.keys() - short
            if wrong := [name for name in plain if stored.get(name) != list(shapes[name])]:
                raise ValueError(f"{min(wrong)} is missing, or not of the shape in config.json")
            parts_of = {name: name.rpartition(".") for name in stored.keys() - plain}
            if wrong := [name for name, (weight, _, _) in parts_of.items() if weight not in short]:
                raise ValueError(f"{min(wrong)} is not part of the network")
            state = {name: file.get_tensor(name) for name in plain}
            packed: dict[str, Parts] = {name: {} for name in short.values()}
            for name, (weight, _, part) in parts_of.items():
                packed[short[weight]][part] = file.get_tensor(name)
        if self.unpack:
            for name, key in short.items():
                try:
                    state[name] = self.unpack(packed[key], shapes[name])
                except ValueError as problem:
                    raise ValueError(f"{name}: {problem}") from None
                if state[name].shape != shapes[name]:
                    raise ValueError(f"{name} is not of the shape in config.json")
        options |= {"config": config, "dtype": config.dtype, "output_loading_info": True}
        cls: Any = type(skeleton)
        with quiet():
            model, info = cls.from_pretrained(None, state_dict=state, **options)
        assert not info["missing_keys"], info
        model.eval()
        if dense or not self.optimize:
            return model
        return self.optimize(model, packed).requires_grad_(False)


def prunable_names(model: nn.Module) -> dict[str, str]:
    """Return the prunable weights: name in the state dict → name in `prunable`."""
    short = {weight: name for name, weight in prunable(model).items()}
    return {name: short[weight] for name, weight in model.named_parameters() if weight in short}


def _skeleton(
    config: PreTrainedConfig, names: Collection[str]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the network on the meta device, without a pooler if it is not stored, and options."""
    cls = class_of(config)
    if not 0 < config.num_hidden_layers <= len(names):
        raise ValueError(f"config.json asks for {config.num_hidden_layers} layers")
    has_pooler = any(name.startswith("pooler.") for name in names)
    without_pooler = pooler_is_optional(cls) and not has_pooler
    options = {"add_pooling_layer": False} if without_pooler else {}
    with torch.device("meta"), quiet():
        return cls(config, **options), options


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
