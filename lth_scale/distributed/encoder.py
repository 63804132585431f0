"""The encoder inside a model."""

from torch import nn


def base_model(model: nn.Module) -> nn.Module:
    """The encoder without its task head; a model that is an encoder already is returned as it is."""
    return getattr(model, "base_model", model)
