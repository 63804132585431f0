"""The encoder inside a model."""

from torch import nn


def base_model(model: nn.Module) -> nn.Module:
    """Return the encoder without its task head; an encoder is returned unchanged."""
    return getattr(model, "base_model", model)
