"""Loading the network of an export, of the class of transformers that its config.json names."""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief
from lth_scale.distributed import compat
from lth_scale.shipping.export.locations import read_verified
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.tasks.checkpoint_checks import check_counts
from lth_scale.tasks.loading import PLAIN


def load_dense(directory: Path) -> PreTrainedModel:
    """Load the dense fp32 network of an export. Raises BadInput as `load_network`."""
    model = load_network(directory, dense=True)
    assert isinstance(model, PreTrainedModel)
    return model


def load_network(directory: Path, dense: bool = False, file: str = "") -> nn.Module:
    """Load the network of an export in eval mode; with `dense`, in its dense fp32 form.

    file: a variant, such as int8 of ONNX, instead of the main file. Raises BadInput as
    `load_exported`, and if the format has no dense form.
    """
    manifest = read_verified(directory)
    kind = manifest["kind"]
    spec = FORMATS[kind]
    if dense and not spec.is_source:
        raise BadInput(
            f"{directory}: is a {kind} export, from which no other is made; use its source instead"
        )
    path = directory / (file or spec.file)
    try:
        config = read_config(str(directory))
        config.dtype = getattr(torch, spec.compute_dtype(manifest["dtype"]))
        return spec.make().load(path, config, manifest, dense)
    except BadInput:
        raise
    except Exception as problem:  # constructors of transformers fail in many ways on invalid values
        why = brief(without_secrets(str(problem)))
        raise BadInput(
            f"{path}: is a damaged {kind} export ({why}); restore a copy of it, or export again"
        ) from problem


def read_config(path: str) -> PreTrainedConfig:
    """Load config.json of a directory or a Hub name, but for the attention code that it may name.

    Raises BadInput for a quantized checkpoint, and what `from_pretrained` raises.
    """
    check_counts(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, **PLAIN)
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(
            f"{path}: config.json describes a quantized network; use the one before quantization"
        )
    compat.clear_attention(config)
    return config


def class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that `architectures` names. Raises BadInput if it does not fit."""
    name = (config.architectures or ["none"])[0]
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
    if not is_model or cls.config_class is not type(config):
        raise BadInput(
            f"{config.name_or_path}: config.json names the class {name!r}, which is not a "
            f"{config.model_type} class of transformers; use a directory of save_pretrained"
        )
    return cls


def pooler_is_optional(cls: type[PreTrainedModel]) -> bool:
    """Return whether the constructor of a class has the argument `add_pooling_layer`."""
    return "add_pooling_layer" in inspect.signature(cls.__init__).parameters


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tied tensor once, under its first name."""
    state = model.state_dict()
    names = (*dict(model.named_parameters()), *dict(model.named_buffers()))
    return {name: state[name] for name in names if name in state}
