"""Tickets as files that smaller, faster or other programs read: `python -m lth_scale.export --help`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.startup import first_imports
from lth_scale.shipping.export.locations import KINDS, check_output, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_exported(directory: str | Path) -> "PreTrainedModel":
    """The network of an export, in eval mode: of the class that config.json names, and answering as before.

    It computes in fp32 (dense, compact, csr, onnx), in fp32 or int8 (native, on the CPU), or in half precision (2:4,
    on the GPU). Raises BadInput, a ValueError that names the file, where one was changed, is cut or missing, where the
    class is none of transformers, or where the format cannot run here.
    """
    from lth_scale.shipping.export.disk import load_network

    return load_network(Path(directory))


def export(
    path: str, kind: str, output_dir: str | Path, dtype: str | None = None
) -> dict[str, Any]:
    """Write the network of a run or checkpoint in a format, once it has been read back and compared.

    kind: a key of `places.KINDS`; dtype: one that the kind has, else its first. Returns what export.json holds; an
    export that is there already is left as it is. Raises BadInput for what cannot be exported, and Stopped where a
    format in fp32 does not answer as before.
    """
    out, dtype = Path(output_dir), dtype or KINDS.get(kind, (("",),))[0][0]
    before = _check(path, kind, dtype, out)
    with first_imports():
        from lth_scale.pruning.prunable_set import check_linear
        from lth_scale.shipping.export import disk, formats
        from lth_scale.shipping.export.source import load_source

    source = load_source(path)
    content = disk.describe(source, kind, dtype)
    if before and before["source_sha256"] != content["source_sha256"]:
        raise BadInput(f"--output_dir {out}: holds an export of another network; give another")
    if before:
        return before
    if kind in ("csr", "native"):
        check_linear(source.model, f"--format {kind}")
    if kind == "2:4":
        formats.check_2_4(source.model)
    missing = [parent for parent in out.absolute().parents if not parent.exists()]
    try:
        with directories.new_directory(out) as folder:
            return disk.fill(folder, source, content)
    except BaseException:
        with suppress(OSError):  # the first one that is not empty
            for parent in missing:
                parent.rmdir()
        raise


def _check(path: str, kind: str, dtype: str, out: Path) -> dict[str, Any]:
    """Refuse what needs no network to be refused; export.json of what is there already, or {}."""
    if kind not in KINDS:
        raise BadInput(f"--format {kind}: is no format; give {', '.join(KINDS)}")
    if dtype not in KINDS[kind].dtypes:
        raise BadInput(
            f"--dtype {dtype}: --format {kind} has {' and '.join(KINDS[kind].dtypes)}; give one of these"
        )
    before = check_output(out, kind, dtype)
    locate(path)
    if kind == "native":
        from lth_scale.shipping.native import kernels

        if why := kernels.unavailable():
            raise BadInput(f"--format native: cannot run here ({why}); give --format csr or onnx")
    if kind == "onnx":
        from lth_scale.shipping.export import onnx

        onnx.require("onnx", "onnxscript", "onnxruntime")
    return before
