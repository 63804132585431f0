"""Loading the network of an export."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief
from lth_scale.shipping.export.architectures import read_config
from lth_scale.shipping.export.locations import read_manifest, read_verified
from lth_scale.shipping.export.registry import FORMATS


def load_dense(directory: Path) -> PreTrainedModel:
    """Load the dense fp32 network of an export. Raises BadInput as `load_network`."""
    kind = read_manifest(directory).facts["kind"]
    if not FORMATS[kind].is_source:
        raise BadInput(
            f"{directory}: is a {kind} export, from which no other is made; use its source instead"
        )
    model = load_network(directory, dense=True)
    assert isinstance(model, PreTrainedModel)
    return model


def load_network(directory: Path, dense: bool = False, file: str = "") -> nn.Module:
    """Load the network of an export in eval mode; with `dense`, in its dense fp32 form.

    file: that of a variant, such as int8 of ONNX, instead of the main one. Raises BadInput if a
    file is damaged or missing, if transformers has no class for it, or if the format cannot run
    here.
    """
    content = read_verified(directory)
    spec = FORMATS[content["kind"]]
    path = directory / (file or spec.file)
    try:
        config = read_config(str(directory))
        config.dtype = getattr(torch, spec.compute_dtype(content["dtype"]))
        return spec.make().load(path, config, content, dense)
    except BadInput:
        raise
    except Exception as problem:  # the constructors of transformers meet anybody's values
        why = brief(without_secrets(str(problem)))
        raise BadInput(
            f"{path}: damaged {content['kind']} export ({why}); export or copy it again"
        ) from problem
