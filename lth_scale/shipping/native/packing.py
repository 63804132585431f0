"""The packed form of a sparse matrix: a tensor of int32 words, whose layout native.cpp describes.

Rows and units (one fp32 weight, or four int8 weights along a row) are cut into blocks. In a block,
groups of four rows take as many steps; each step has four offsets into a tile and four units.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lth_scale.shipping.native import kernels

DTYPES = ("float32", "int8")
# Rows and columns of a block, whose part of a tile fits L1 or L2: benchmarks/sparse_kernels.py.
ROW_BLOCK, UNIT_BLOCK = 192, 128
MAGIC, NO_ROW = 0x3153544C, 0xFFFF  # as in native.cpp
Array = NDArray[Any]


def pack_linear(weight: Tensor, dtype: str) -> dict[str, Tensor]:
    """Pack a weight, fp32 (rows, columns), for the kernel: {"packed": int32, 1-D}.

    float32 keeps every weight that is not 0 to the bit. int8 rounds to scale · q with q in
    −127 … 127 and the scale max |w| / 127 of each row, and stores each four q along a row of which
    any is not 0. Raises BadInput if the kernel cannot run here.
    """
    kernels.require()
    weight = weight.detach().float().contiguous() + 0.0  # −0.0, which a mask leaves, becomes 0
    columns, scales = weight.shape[1], None
    if dtype == "int8":
        scales = weight.abs().amax(1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        weight = (weight / scales[:, None]).round().to(torch.int8)
        weight = nn.functional.pad(weight, (0, -columns % 4)).contiguous()
    units = weight.view(torch.int32)
    return {"packed": torch.ops.lth_scale.pack(units, columns, scales, ROW_BLOCK, UNIT_BLOCK)}


def unpack_linear(parts: Mapping[str, Tensor], shape: Sequence[int] | None = None) -> Tensor:
    """Return the dense fp32 weight of `pack_linear`, for int8 as it was rounded; needs no kernel.

    Raises ValueError, before it allocates memory, unless the matrix is intact and of `shape`, so
    that the kernel stays inside its tensors.
    """
    packed = parts.get("packed")
    if packed is None or len(parts) > 1 or packed.dtype != torch.int32 or packed.dim() != 1:
        raise ValueError("a packed matrix has one part, 'packed', of int32")
    words = packed.numpy()
    _check(len(words) >= 8, "size")
    magic, rows, columns, is_int8, row_block, unit_block, n_groups, n_steps = map(int, words[:8])
    is_other_shape = shape is not None and (rows, columns) != tuple(shape)
    if magic != MAGIC or is_int8 not in (0, 1) or is_other_shape:
        raise ValueError(
            f"not a packed matrix of this version and of the shape {tuple(shape or ())}"
        )
    _check(min(rows, columns, row_block, unit_block) > 0 <= min(n_groups, n_steps), "header")
    _check(row_block < NO_ROW and unit_block <= 256, "header")
    width = -(-columns // 4) if is_int8 else columns  # units in a row
    tops, lefts = range(0, rows, row_block), range(0, width, unit_block)
    n_starts, n_scales = len(tops) * len(lefts) + 1, rows * is_int8
    sizes = (8, 2 * n_starts, 3 * n_groups, 2 * n_steps, 4 * n_steps, n_scales, n_scales)
    _check(sum(sizes) == len(words), "size")
    _, starts, groups, offsets, units, scales, _ = numpy.split(words, numpy.cumsum(sizes)[:-1])

    top, left = numpy.repeat(tops, len(lefts)), numpy.tile(lefts, len(tops))  # of each block
    height = numpy.minimum(row_block, rows - top)
    groups = groups.reshape(-1, 3)
    steps, members = groups[:, 0], groups[:, 1:].copy().view(numpy.uint16)
    block = _blocks_of_groups(starts.reshape(-1, 2), height, steps, members, n_steps)
    group = numpy.repeat(numpy.arange(n_groups), steps)  # of each step
    block, member = block[group], members[group]
    unit, rest = numpy.divmod(offsets.copy().view(numpy.uint16).reshape(-1, 4), 4 * kernels.TILE)
    column = left[block, None] + unit
    right = numpy.minimum(left[block] + unit_block, width)
    _check(not rest.any() and (column < right[:, None]).all(), "offsets")
    dense, units = numpy.zeros((rows, width), numpy.int32), units.reshape(-1, 4)
    stored = (units != 0) & (member != NO_ROW)
    dense[(top[block, None] + member)[stored], column[stored]] = units[stored]
    if not is_int8:
        return torch.from_numpy(dense.view(numpy.float32))
    quantized = dense.view(numpy.int8)[:, :columns]
    return torch.from_numpy(quantized * scales.view(numpy.float32)[:, None])


def _blocks_of_groups(
    starts: Array, height: Array, steps: Array, members: Array, n_steps: int
) -> Array:
    """Return the block of each group. Raises ValueError unless each row is in exactly one group.

    starts: the first group and step of each block, and their ends. height: rows of each block.
    members: (groups, 4), rows in the block or NO_ROW.
    """
    groups = -(-height // 4)  # of each block
    groups_before, steps_before = _sums_before(groups), _sums_before(steps)
    _check(groups_before[-1] == len(steps) and (steps >= 0).all(), "groups")
    _check((starts[:, 0] == groups_before).all(), "groups")
    _check((starts[:, 1] == steps_before[groups_before]).all(), "steps")
    _check(steps_before[-1] == n_steps, "steps")
    block, used = numpy.repeat(numpy.arange(len(groups)), groups), members != NO_ROW
    _check((members < height[block, None])[used].all(), "rows")
    distinct = len(numpy.unique((block[:, None] * NO_ROW + members)[used]))
    _check(distinct == height.sum() == used.sum(), "rows")
    return block


def _sums_before(counts: Array) -> Array:
    return numpy.concatenate([[0], numpy.cumsum(counts)])


def _check(holds: Any, section: str) -> None:
    if not holds:
        raise ValueError(f"a packed matrix is damaged: its {section}")
