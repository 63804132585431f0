"""Write the network of a ticket in a format, and load it again. Imports torch when it is used."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.startup import first_imports
from lth_scale.shipping.export.locations import check_output, locate
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.shipping.packages import require

if TYPE_CHECKING:
    from torch import nn


def load_exported(directory: str | Path) -> "nn.Module":
    """Load the network of an export, in eval mode.

    It is of the class that config.json names and computes in fp32 (dense, compact, csr), in fp32
    or int8 (native, on the CPU) or in half precision (2:4, on the GPU). An ONNX export is a module
    that runs the file on the CPU, with the inputs and outputs of that class. Raises BadInput, a
    ValueError that names the file, if one was changed, cut or lost, if transformers has no such
    class, or if the format cannot run here.
    """
    from lth_scale.shipping.export.loading import load_network

    return load_network(Path(directory))


def export(
    path: str, kind: str, output_dir: str | Path, dtype: str | None = None
) -> dict[str, Any]:
    """Write the network of a run or checkpoint in a format, read it back and compare the outputs.

    kind: a name in `FORMATS`; dtype: one of its dtypes (default: the first). Returns the content of
    export.json; an export that exists already is left as it is. Raises BadInput for what cannot be
    exported, and Stopped if an fp32 export does not give the outputs of its source.
    """
    directory, dtype = Path(output_dir), dtype or default_dtype(kind)
    existing = check_arguments(path, kind, directory, dtype)
    with first_imports():
        from lth_scale.shipping.export import writing
        from lth_scale.shipping.export.source import load_source

    source = load_source(path)
    manifest = writing.describe(source, kind, dtype)
    if existing and existing["source_sha256"] != manifest["source_sha256"]:
        raise BadInput(
            f"--output_dir {directory}: holds an export of another network; "
            "specify another directory"
        )
    if existing:
        return existing
    FORMATS[kind].make().check(source.model)
    with remove_new_parents(directory), directories.new_directory(directory) as unfinished:
        return writing.write_export(unfinished, source, manifest)


def default_dtype(kind: str) -> str:
    """Return the first dtype of a format. Raises BadInput if there is no such format."""
    if kind not in FORMATS:
        raise BadInput(f"--format {kind}: unknown format; use one of {', '.join(FORMATS)}")
    return FORMATS[kind].dtypes[0]


def check_arguments(path: str, kind: str, directory: Path, dtype: str) -> dict[str, Any]:
    """Raise BadInput for what can be refused before the network is loaded.

    Returns export.json of an export that `directory` holds already, or {}.
    """
    default_dtype(kind)
    spec = FORMATS[kind]
    if dtype not in spec.dtypes:
        raise BadInput(
            f"--dtype {dtype}: not a dtype of --format {kind}; use {' or '.join(spec.dtypes)}"
        )
    existing = check_output(directory, kind, dtype)
    locate(path)
    require(*spec.packages)
    return existing


@contextmanager
def remove_new_parents(directory: Path) -> Iterator[None]:
    """If an error leaves the block, remove the parents of `directory` that did not exist before."""
    missing = [parent for parent in directory.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # from the first one that is not empty
            for parent in missing:
                parent.rmdir()
        raise
