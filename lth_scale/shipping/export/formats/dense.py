"""Dense weights with exact zeros: a plain checkpoint of transformers."""

from lth_scale.shipping.export.formats.tensors import SafetensorsFormat


def dense_format() -> SafetensorsFormat:
    """Weights as `save_pretrained` stores them."""
    return SafetensorsFormat()
