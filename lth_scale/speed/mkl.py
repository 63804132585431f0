"""oneMKL's inspector-executor for sparse matrices (the package `mkl`), called through ctypes."""

import ctypes
import functools
import importlib.metadata
import os
from typing import Any

import torch
from torch import Tensor, nn

from lth_scale.export.formats import pack_csr
from lth_scale.prunable import base_model, check_linear, prunable

CHUNK = 256  # tokens a product; more leave the caches
AS_IT_IS, ROW_MAJOR = 10, 101  # mkl_spblas.h; its matrix_descr of a general matrix is three ints: 20, 40, 50
GENERAL = type("matrix_descr", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_int) for n in "abc"]})(20, 40, 50)


@functools.cache
def library() -> Any:
    """libmkl_rt on GNU's OpenMP, as torch is. Raises OSError or PackageNotFoundError."""
    os.environ.setdefault("MKL_THREADING_LAYER", "GNU")
    found = [file for file in importlib.metadata.files("mkl") or () if file.name.startswith("libmkl_rt.")]
    return ctypes.CDLL(str(found[0].locate()) if found else "libmkl_rt.so")


def unavailable() -> str:
    """Why it cannot be used, in one line, or nothing."""
    try:
        library()
    except (OSError, importlib.metadata.PackageNotFoundError) as problem:
        return f"mkl: cannot be loaded ({problem}); pip install mkl"
    return ""


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(library(), f"mkl_sparse_{name}")(*arguments):
        raise RuntimeError(f"mkl_sparse_{name} failed with status {status}")


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class MklLinear(nn.Module):
    """`nn.Linear` with its weight in a handle of MKL: fp32 x (…, in_features) → (…, out_features)."""

    def __init__(self, linear: Any):
        super().__init__()
        self.bias, self.handle, (self.rows, self.columns) = linear.bias, ctypes.c_void_p(), linear.weight.shape
        self.parts = pack_csr(linear.weight.detach())  # MKL keeps no copy
        crow, col, values = (self.parts[name] for name in ("crow", "col", "values"))
        pointers = map(_pointer, (crow, crow[1:], col, values))
        _call("s_create_csr", ctypes.byref(self.handle), 0, self.rows, self.columns, *pointers)
        _call("set_mm_hint", self.handle, AS_IT_IS, GENERAL, ROW_MAJOR, CHUNK, 1000)
        _call("optimize", self.handle)

    def forward(self, x: Tensor) -> Tensor:
        """W xᵀ in chunks: MKL is fastest where both dense matrices lie row by row."""
        found = []
        for tokens in x.reshape(-1, self.columns).split(CHUNK):
            n, turned, out = len(tokens), tokens.T.contiguous(), torch.empty(self.rows, len(tokens))
            operands = (ctypes.c_float(1), self.handle, GENERAL, ROW_MAJOR, _pointer(turned), n, n, ctypes.c_float(0))
            _call("s_mm", AS_IT_IS, *operands, _pointer(out), n)
            found.append(out.T if self.bias is None else out.T + self.bias)
        return torch.cat(found).reshape(*x.shape[:-1], self.rows)


def convert(model: Any) -> Any:
    """Put MKL's products, on as many threads as torch's, in the place of the prunable Linears. Returns the model.

    Raises BadInput where one is no Linear.
    """
    check_linear(model, "mkl")
    library().MKL_Set_Num_Threads(torch.get_num_threads())
    base = base_model(model)
    for where in [name.removesuffix(".weight") for name in prunable(model)]:
        base.set_submodule(where, MklLinear(base.get_submodule(where)))
    return model
