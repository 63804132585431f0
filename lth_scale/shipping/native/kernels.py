"""Building and loading the sparse CPU kernel.

The C++ is compiled once a machine, on first use (by a compiler with OpenMP, for x86-64 with AVX2,
or AVX-512 with VNNI). Weights are fp32, or int8 with a scale for each output channel and uint8
activations with a scale and a zero point for each token. Only kept weights are stored and
multiplied; a pruned weight times an activation that is infinite or NaN is NaN, as in the dense
product.
"""

import functools
import hashlib
import platform
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.library import register_fake

from lth_scale.config import directories, startup
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
        _load()
    except Exception as problem:  # a compiler fails in many ways
        return f"the native kernels could not be compiled ({first_line(problem)})"
    if not torch.ops.lth_scale.use(""):
        return "the native kernels need AVX2 and FMA, which this processor lacks"
    return ""


def require() -> None:
    """Raise BadInput if the kernels cannot run here."""
    if why := unavailable():
        raise BadInput(f"--format native: {why}; use --format csr or dense")


def _load() -> None:
    """Load the library of these sources and this torch, compiling it first if it is not cached."""
    startup.ensure_writable("TORCH_EXTENSIONS_DIR")
    sources = [Path(__file__).with_name(name) for name in SOURCES]
    content = b"".join(path.read_bytes() for path in sources)
    version = hashlib.sha256(content + repr((FLAGS, torch.__version__)).encode()).hexdigest()
    name = f"lth_scale_native_{version[:12]}"
    cache = compat.extension_directory(name)
    with directories.exclusive(cache):  # one process at a time
        if (cache / f"{name}.so").is_file():
            torch.ops.load_library(cache / f"{name}.so")
        else:
            _compile(name, sources[0], cache)
    _register_shapes()


def _compile(name: str, source: Path, cache: Path) -> None:
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if not shutil.which(compiler):
        raise OSError(f"there is no C++ compiler {compiler}; install g++")
    with directories.new_directory(cache) as unfinished:
        cpp_extension.load(
            name, [str(source)], FLAGS, build_directory=unfinished, is_python_module=False
        )


def _register_shapes() -> None:
    """Tell torch.compile the shapes that the operators return."""

    def enter(x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], (x.shape[1] + TILE - 1) // TILE, x.shape[2], TILE)

    register_fake("lth_scale::enter", enter)
    register_fake("lth_scale::leave", lambda x, n: x.new_empty(x.shape[0], n, x.shape[2]))
    register_fake("lth_scale::layer", lambda x, *_: torch.empty_like(x))
    register_fake("lth_scale::linear", lambda x, _, rows, bias: x.new_empty(*x.shape[:-1], rows))
