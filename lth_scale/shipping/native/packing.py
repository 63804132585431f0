"""The packed form of a sparse matrix: a tensor of int32 words, whose layout native.cpp describes.

Rows and units (one fp32 weight, or four int8 weights along a row) are cut into blocks. In a block,
groups of four rows take as many steps; each step has four offsets into a tile and four units.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    columns = weight.shape[1]
    if dtype == "float32":
        units, scales = weight.view(torch.int32), None
    else:
        scales = weight.abs().amax(1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        quantized = (weight / scales[:, None]).round().to(torch.int8)
        units = nn.functional.pad(quantized, (0, -columns % 4)).contiguous().view(torch.int32)
    packed = torch.ops.lth_scale.pack(units, columns, scales, ROW_BLOCK, UNIT_BLOCK)
    return {"packed": packed}


def unpack_linear(parts: Mapping[str, Tensor], shape: Sequence[int] | None = None) -> Tensor:
    """Return the dense fp32 weight of `pack_linear`, for int8 as it was rounded; needs no kernel.

    Raises ValueError, before it allocates memory, unless the matrix is whole and of `shape`: then
    the kernel reads and writes only inside its tensors.
    """
    packed = parts.get("packed")
    if packed is None or len(parts) > 1 or packed.dtype != torch.int32 or packed.dim() != 1:
        raise ValueError("a packed matrix has one part, 'packed', of int32")
    header, words = _read_header(packed.numpy(), shape)
    starts, groups, offsets, units, scales = _sections(header, words)
    steps = groups[:, 0]
    rows = groups[:, 1:].copy().view(numpy.uint16)  # (groups, 4), within their block
    blocks = _Blocks.of(header)
    _check_groups(header, blocks, starts, steps, rows)

    group = numpy.repeat(numpy.arange(header.groups), steps)  # of each step
    block = blocks.of_groups()[group]
    offset = offsets.copy().view(numpy.uint16).reshape(-1, 4)
    column = blocks.left[block, None] + offset // (4 * kernels.TILE)
    right = numpy.minimum(blocks.left[block] + header.unit_block, header.width)
    _check((offset % (4 * kernels.TILE) == 0).all(), "offsets")
    _check((column < right[:, None]).all(), "offsets")
    dense = numpy.zeros((header.rows, header.width), numpy.int32)
    units = units.reshape(-1, 4)
    row = blocks.top[block, None] + rows[group]
    stored = (units != 0) & (rows[group] != NO_ROW)
    dense[row[stored], column[stored]] = units[stored]
    if not header.is_int8:
        return torch.from_numpy(dense.view(numpy.float32))
    quantized = dense.view(numpy.int8)[:, : header.columns]
    return torch.from_numpy(quantized * scales.view(numpy.float32)[:, None])


class _Header(NamedTuple):
    magic: int
    rows: int
    columns: int
    is_int8: int
    row_block: int
    unit_block: int
    groups: int
    steps: int

    @property
    def width(self) -> int:
        """Units in a row."""
        return -(-self.columns // 4) if self.is_int8 else self.columns

    @property
    def across(self) -> int:
        """Blocks in a row of blocks."""
        return -(-self.width // self.unit_block)

    @property
    def blocks(self) -> int:
        return self.across * -(-self.rows // self.row_block)


class _Blocks(NamedTuple):
    """For each block: its first row and column, its number of rows, and of groups."""

    top: Array
    left: Array
    height: Array
    groups: Array

    @classmethod
    def of(cls, header: _Header) -> "_Blocks":
        down, across = numpy.divmod(numpy.arange(header.blocks), header.across)
        top = down * header.row_block
        height = numpy.minimum(header.row_block, header.rows - top)
        return cls(top, across * header.unit_block, height, -(-height // 4))

    def of_groups(self) -> Array:
        """Return the block of each group."""
        return numpy.repeat(numpy.arange(len(self.groups)), self.groups)


def _read_header(words: Array, shape: Sequence[int] | None) -> tuple[_Header, Array]:
    """Return the header and the words after it. Raises ValueError for another shape."""
    size = len(_Header._fields)
    _check(len(words) >= size, "size")
    header = _Header(*map(int, words[:size]))
    is_other_shape = shape is not None and (header.rows, header.columns) != tuple(shape)
    if header.magic != MAGIC or header.is_int8 not in (0, 1) or is_other_shape:
        raise ValueError(
            f"not a packed matrix of this version and of the shape {tuple(shape or ())}"
        )
    sizes = (header.rows, header.columns, header.row_block, header.unit_block)
    _check(min(sizes) > 0 <= min(header.groups, header.steps), "header")
    _check(header.row_block < NO_ROW and header.unit_block <= 256, "header")
    return header, words[size:]


def _sections(header: _Header, words: Array) -> list[Array]:
    """Return starts (blocks + 1, 2), groups (groups, 3), offsets, units and scales."""
    scales = header.rows * header.is_int8
    sizes = (
        2 * (header.blocks + 1),
        3 * header.groups,
        2 * header.steps,
        4 * header.steps,
        scales,
        scales,
    )
    _check(sum(sizes) == len(words), "size")
    starts, groups, *others, _ = numpy.split(words, numpy.cumsum(sizes)[:-1])
    return [starts.reshape(-1, 2), groups.reshape(-1, 3), *others]


def _check_groups(
    header: _Header, blocks: _Blocks, starts: Array, steps: Array, rows: Array
) -> None:
    """Raise ValueError unless groups and steps add up and every row is in exactly one group."""
    groups_before = _sums_before(blocks.groups)
    _check((starts[:, 0] == groups_before).all() and (steps >= 0).all(), "groups")
    _check(groups_before[-1] == header.groups, "groups")
    _check((starts[:, 1] == _sums_before(steps)[groups_before]).all(), "steps")
    _check(starts[-1, 1] == header.steps, "steps")
    block, used = blocks.of_groups(), rows != NO_ROW
    _check((rows < blocks.height[block, None])[used].all(), "rows")
    distinct = len(numpy.unique((block[:, None] * NO_ROW + rows)[used]))
    _check(distinct == blocks.height.sum() == used.sum(), "rows")


def _sums_before(counts: Array) -> Array:
    return numpy.concatenate([[0], numpy.cumsum(counts)])


def _check(holds: Any, section: str) -> None:
    if not holds:
        raise ValueError(f"a packed matrix is damaged: its {section}")
