"""Building and loading the sparse CPU kernel.

The C++ is compiled once a machine, on first use (a C++ compiler with OpenMP; x86-64 with AVX2, and
AVX-512 with VNNI if the processor has it). Weights are fp32, or int8 with a scale for each output
channel and activations of uint8 with a scale and a zero point for each token. Only kept weights are
stored and multiplied; if an activation is infinite or NaN, a pruned weight still gives 0 · ∞ = NaN,
as in the dense product.
"""

import functools
import hashlib
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lth_scale.config import caches, directories, locks
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.distributed import compat

SOURCES = ("native.cpp", "kernels.h")
FLAGS = ["-O3", "-fopenmp", "-std=c++20", "-ffp-contract=off"]
TILE = 64  # tokens that activations are stored together in


@functools.cache
def unavailable() -> str:
    """Return why the kernels cannot run here, or "". Compiles them on their first use."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the native kernels need x86-64 with AVX2, and this is {platform.machine()}"
    try:
        _build()
    except Exception as problem:  # a compiler fails in many ways
        return f"the native kernels could not be compiled ({first_line(problem)})"
    if not torch.ops.lth_scale.use(""):
        return "the native kernels need AVX2 and FMA, which this processor lacks"
    return ""


def require() -> None:
    """Raise BadInput if the kernels cannot run here."""
    if why := unavailable():
        raise BadInput(f"--format native: {why}; use --format csr or dense")


def instruction_set(name: str = "") -> str:
    """Select `avx512` or `avx2`, or only return the one in use. Raises ValueError."""
    require()
    return torch.ops.lth_scale.use(name)


def _build() -> None:
    """Load the library of these sources and this torch, compiling it first if it is not cached."""
    caches.ensure_writable("TORCH_EXTENSIONS_DIR")
    directory = Path(__file__).parent
    sources = b"".join((directory / name).read_bytes() for name in SOURCES)
    version = hashlib.sha256(sources + repr((FLAGS, torch.__version__)).encode()).hexdigest()
    name = f"lth_scale_native_{version[:12]}"
    cache = compat.extension_directory(name)
    with locks.exclusive(cache):  # one process at a time
        if (cache / f"{name}.so").is_file():
            torch.ops.load_library(cache / f"{name}.so")
        else:
            _compile(name, directory / SOURCES[0], cache)
    _register_fake_kernels()


def _compile(name: str, source: Path, cache: Path) -> None:
    """Compile and load the library. Raises OSError if there is no compiler."""
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if not shutil.which(compiler):
        raise OSError(f"there is no C++ compiler {compiler}; install g++")
    with directories.new_directory(cache) as unfinished:
        cpp_extension.load(
            name, [str(source)], FLAGS, build_directory=unfinished, is_python_module=False
        )


def _register_fake_kernels() -> None:
    """Tell torch.compile the shapes that the operators return."""
    shapes: dict[str, Callable[..., Tensor]] = {
        "enter": _enter,
        "leave": _leave,
        "layer": _layer,
        "linear": _linear,
    }
    for name, fake in shapes.items():
        torch.library.register_fake(f"lth_scale::{name}", fake)


def _enter(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], (x.shape[1] + TILE - 1) // TILE, x.shape[2], TILE)


def _leave(x: Tensor, length: int) -> Tensor:
    return x.new_empty(x.shape[0], length, x.shape[2])


def _layer(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _linear(x: Tensor, packed: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)
