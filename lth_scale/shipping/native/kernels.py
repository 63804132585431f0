"""Sparse × dense products on CPU that are faster than dense ones: our kernel, and encoders rebuilt around it.

The C++ is compiled once a machine, on first use (a C++ compiler with OpenMP, x86-64 with AVX2; AVX-512 with VNNI is
used where it is there). Weights are fp32, or int8 with a scale for each output channel and activations of uint8 with a
scale and a zero point for each token. Only what the mask keeps is stored and multiplied; where an activation is
infinite or NaN, a pruned weight still gives 0 · ∞ = NaN, as the dense product does.
"""

import functools
import hashlib
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.config import caches, directories, locks
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.prunable_set import check_linear, prunable
from lth_scale.shipping.native.modules import TILE, NativeLinear, fuse

DTYPES = ("float32", "int8")
Parts = dict[str, Tensor]
ROW_BLOCK, UNIT_BLOCK = (
    192,
    128,
)  # benchmarks/sparse_kernels.py: a block of a tile stays in L1 or L2
MAGIC, NO_ROW = 0x3153544C, 0xFFFF  # as in native.cpp
SOURCES = ("native.cpp", "kernels.h")
FLAGS = ["-O3", "-fopenmp", "-std=c++20", "-ffp-contract=off"]


@functools.cache
def unavailable() -> str:
    """Why the kernels cannot run here, in one line; "" where they can. Compiles them the first time on a machine."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the native kernels are for x86-64 with AVX2, and this is {platform.machine()}"
    try:
        _build()
    except Exception as problem:  # a compiler fails in many ways
        return f"the native kernels could not be compiled ({first_line(problem)})"
    return (
        ""
        if torch.ops.lth_scale.use("")
        else "the native kernels need AVX2 and FMA, which this processor lacks"
    )


def _build() -> None:
    """Load the library; where there is none of these sources and this torch yet, compile it, one process at a time."""
    from torch.utils import cpp_extension

    caches.ensure_writable("TORCH_EXTENSIONS_DIR")
    here = Path(__file__).parent
    content = (
        b"".join((here / name).read_bytes() for name in SOURCES)
        + repr((FLAGS, torch.__version__)).encode()
    )
    name = f"lth_scale_native_{hashlib.sha256(content).hexdigest()[:12]}"
    home = Path(cpp_extension._get_build_directory(name, verbose=False))
    with locks.exclusive(home):
        if not (home / f"{name}.so").is_file():
            if not shutil.which(cpp_extension.get_cxx_compiler()):
                raise OSError(
                    f"there is no C++ compiler {cpp_extension.get_cxx_compiler()}; install g++"
                )
            with directories.new_directory(home) as made:
                cpp_extension.load(
                    name,
                    [str(here / SOURCES[0])],
                    FLAGS,
                    build_directory=made,
                    is_python_module=False,
                )
        else:
            torch.ops.load_library(home / f"{name}.so")
    from lth_scale.shipping.native import shapes  # noqa: F401 (what torch.compile is told of the operators)


def instruction_set(name: str = "") -> str:
    """Take `avx512` or `avx2` for all further products, or say with "" which is taken. Raises ValueError."""
    require()
    return torch.ops.lth_scale.use(name)


def require() -> None:
    """Raise BadInput where the kernels cannot run."""
    if reason := unavailable():
        raise BadInput(f"--format native: {reason}; take --format csr or dense")


def pack_linear(weight: Tensor, dtype: str) -> Parts:
    """What the kernel reads for a weight (fp32, rows × columns): {"packed": int32, 1-D}.

    float32 keeps every weight that is not 0 to the bit. int8 rounds to scale · q with q in −127 … 127 and the scale
    max |w| / 127 of each row, and stores each four along a row of which any q is not 0.
    """
    require()
    weight = (
        weight.detach().float().contiguous() + 0.0
    )  # −0.0, which a mask leaves of a negative weight, is 0
    if dtype == "float32":
        units, scales = weight.view(torch.int32), None
    else:
        scales = weight.abs().amax(1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        quantized = (weight / scales[:, None]).round().to(torch.int8)
        units = (
            nn.functional.pad(quantized, (0, -weight.shape[1] % 4)).contiguous().view(torch.int32)
        )
    return {
        "packed": torch.ops.lth_scale.pack(units, weight.shape[1], scales, ROW_BLOCK, UNIT_BLOCK)
    }


def unpack_linear(parts: Mapping[str, Tensor], shape: Sequence[int] | None = None) -> Tensor:
    """The dense fp32 weight of `pack_linear`, for int8 as it was rounded; runs wherever numpy does.

    Raises ValueError, before it takes memory, unless the matrix is whole and of `shape`: after that, the kernel reads
    and writes inside its tensors.
    """
    if (
        set(parts) != {"packed"}
        or parts["packed"].dtype != torch.int32
        or parts["packed"].dim() != 1
    ):
        raise ValueError("a packed matrix has one part, 'packed', of int32")
    words = parts["packed"].numpy()
    magic, rows, columns, is_int8, row_block, unit_block, n_groups, n_steps = map(
        int, (*words[:8], *[-1] * 8)[:8]
    )
    if (
        magic != MAGIC
        or is_int8 not in (0, 1)
        or (shape is not None and (rows, columns) != tuple(shape))
    ):
        raise ValueError(f"no packed matrix of this version and of the shape {tuple(shape or ())}")
    _check(min(rows, columns, row_block, unit_block) > 0 <= min(n_groups, n_steps), "header")
    _check(row_block < NO_ROW and unit_block <= 256, "header")
    width = -(-columns // 4) if is_int8 else columns
    across, blocks = -(-width // unit_block), -(-width // unit_block) * -(-rows // row_block)
    sizes = (
        8,
        2 * (blocks + 1),
        3 * n_groups,
        2 * n_steps,
        4 * n_steps,
        rows * is_int8,
        rows * is_int8,
    )
    _check(sum(sizes) == len(words), "size")
    _, starts, groups, offsets, units, scales, _ = numpy.split(words, numpy.cumsum(sizes)[:-1])

    first, steps = starts.reshape(-1, 2).T, groups[::3]
    which = (
        groups.reshape(-1, 3)[:, 1:].copy().view(numpy.uint16)
    )  # (groups, 4): rows in their block
    top, left = numpy.divmod(numpy.arange(blocks), across)
    top, left = top * row_block, left * unit_block
    high = numpy.minimum(row_block, rows - top)
    begins = numpy.concatenate([[0], numpy.cumsum(-(-high // 4))])
    _check((first[0] == begins).all() and (steps >= 0).all() and begins[-1] == n_groups, "groups")
    _check(
        (first[1] == numpy.concatenate([[0], numpy.cumsum(steps)])[begins]).all()
        and first[1][-1] == n_steps,
        "steps",
    )
    block = numpy.repeat(numpy.arange(blocks), -(-high // 4))
    real = which != NO_ROW
    _check((which < high[block, None])[real].all(), "rows")
    _check(
        len(numpy.unique((block[:, None] * NO_ROW + which)[real])) == high.sum() == real.sum(),
        "rows",
    )

    group = numpy.repeat(numpy.arange(n_groups), steps)
    offset, place = offsets.copy().view(numpy.uint16).reshape(-1, 4), block[group]
    column = left[place, None] + offset // (4 * TILE)
    _check((offset % (4 * TILE) == 0).all(), "offsets")
    _check((column < numpy.minimum(left[place] + unit_block, width)[:, None]).all(), "offsets")
    dense = numpy.zeros((rows, width), numpy.int32)
    stored = (units.reshape(-1, 4) != 0) & real[group]
    dense[(top[place, None] + which[group])[stored], column[stored]] = units.reshape(-1, 4)[stored]
    if not is_int8:
        return torch.from_numpy(dense.view(numpy.float32))
    return torch.from_numpy(
        dense.view(numpy.int8)[:, :columns] * scales.view(numpy.float32)[:, None]
    )


def _check(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(f"a packed matrix is damaged: its {what}")


def convert(model: PreTrainedModel, dtype: str = "float32") -> PreTrainedModel:
    """Have `model` multiply its prunable matrices by our kernel, in place, with its zeros for a mask.

    Raises BadInput where one is no `nn.Linear`, or the kernel cannot run.
    """
    check_linear(model, "--format native")
    return install(
        model, {name: pack_linear(weight, dtype) for name, weight in prunable(model).items()}
    )


def install(model: PreTrainedModel, packed: Mapping[str, Parts]) -> PreTrainedModel:
    """Put packed matrices (by their names in `prunable`) in the place of the dense ones.

    Layers of BERT's make become one operator each and pass tiles on to each other; elsewhere each Linear is replaced by
    itself. The model is for inference: its packed matrices have no gradients.
    """
    require()
    check_linear(model, "--format native")
    base = base_model(model)
    for name, parts in packed.items():
        path = name.removesuffix(".weight")
        linear: Any = base.get_submodule(path)
        base.set_submodule(path, NativeLinear(parts["packed"], linear.bias))
    fuse(base)
    return model.eval()
