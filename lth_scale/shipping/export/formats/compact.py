"""One bit for each weight of a matrix, and the values of those that are kept: the smallest file."""

import numpy
import torch
from torch import Tensor

from lth_scale.shipping.export.formats import tensors
from lth_scale.shipping.export.formats.tensors import BITS, Parts, SafetensorsFormat


def make() -> SafetensorsFormat:
    """Return the format: packed on disk, dense in memory."""
    return SafetensorsFormat(lambda weight, dtype: pack_compact(weight), unpack_compact)


def pack_compact(weight: Tensor) -> Parts:
    """Pack a matrix of n weights.

    Returns bits, uint8 (⌈n/8⌉,), little-endian, and values: the kept weights, row by row.
    """
    mask = tensors.nonzero_bits(weight.contiguous())
    bits = numpy.packbits(mask.numpy().reshape(-1), bitorder="little")
    return {"bits": torch.from_numpy(bits), "values": weight[mask]}


def unpack_compact(parts: Parts, shape: torch.Size) -> Tensor:
    """Return the dense matrix. Raises ValueError if bits, values and shape do not agree."""
    bits, values = tensors.take_parts(parts, "bits", "values")
    count = shape.numel()
    if bits.dtype != torch.uint8 or bits.shape != ((count + 7) // 8,):
        raise ValueError(f"its bits do not fit the shape {tuple(shape)}")
    mask = numpy.unpackbits(bits.numpy(), bitorder="little")
    if mask[count:].any() or values.shape != (int(mask.sum()),) or values.dtype not in BITS:
        raise ValueError("its bits and values do not agree")
    weight = torch.zeros(shape, dtype=values.dtype)
    weight.view(-1)[torch.from_numpy(mask[:count].view(bool))] = values
    return weight
