"""config.json of a checkpoint, and the class of transformers that it names."""

import inspect
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.distributed import compat
from lth_scale.tasks.loading import PLAIN, check_counts


def read_config(path: str) -> PreTrainedConfig:
    """Load config.json of a directory or a Hub name.

    Its attention implementation, which may name code, is ignored. Raises BadInput for a quantized
    checkpoint, and what `from_pretrained` raises.
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


def accepts(cls: type[PreTrainedModel], option: str) -> bool:
    """Return whether the constructor of a class has this keyword argument."""
    return option in inspect.signature(cls.__init__).parameters


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tied tensor once, under its first name."""
    state = model.state_dict()
    names = (*dict(model.named_parameters()), *dict(model.named_buffers()))
    return {name: state[name] for name in names if name in state}
