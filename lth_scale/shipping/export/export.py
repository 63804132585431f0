"""Writing the network of a ticket in a format, and loading it. Imports torch when it is used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import flag
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.export.locations import MANIFEST, WANTED, check_output, locate
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.shipping.packages import require

if TYPE_CHECKING:
    from torch import nn

SUMMARY = """\
export      {kind} in {dtype}, {architecture}: {path}
size        {sizes} (dense in fp32: {dense:.1f} MB)
sparsity    {sparsity:.2%} ({pruned:,} of {prunable:,} prunable weights)
{differences}
measured on {difference[inputs]}
load it     from lth_scale import load_exported; model = load_exported({directory!r})"""


def load_exported(directory: str | Path) -> "nn.Module":
    """Load the network of an export, in eval mode.

    It is of the class that config.json names and computes in fp32 (dense, compact, csr), in fp32
    or int8 (native, on the CPU) or in half precision (2:4, on the GPU). An ONNX export is a module
    with the inputs and outputs of that class, on the CPU. Raises BadInput, a ValueError, if a file
    is missing or was altered, if transformers has no such class, or if the format cannot run here.
    """
    from lth_scale.shipping.export.loading import load_network

    return load_network(Path(directory))


def export(
    path: str, kind: str, output_dir: str | Path, dtype: str | None = None
) -> dict[str, Any]:
    """Write the network of a run or checkpoint in a format, load it again and compare the outputs.

    kind: a name in `FORMATS`. dtype: one of its dtypes (default: the first). Returns export.json;
    an export that exists already is not changed. Raises BadInput for what cannot be exported, and
    Stopped if an fp32 export does not give the outputs of its source.
    """
    if kind not in FORMATS:
        raise BadInput(f"--format {kind}: unknown format; use one of {', '.join(FORMATS)}")
    spec, directory = FORMATS[kind], Path(output_dir)
    dtype = dtype or spec.dtypes[0]
    if dtype not in spec.dtypes:
        raise BadInput(
            f"--dtype {dtype}: not a dtype of --format {kind}; use {' or '.join(spec.dtypes)}"
        )
    existing = check_output(directory, kind, dtype)
    locate(path)
    require(*spec.packages)
    with first_imports():
        from lth_scale.shipping.export import writing
        from lth_scale.shipping.export.source import load_source

    source = load_source(path)
    manifest = writing.describe(source, kind, dtype)
    if existing and existing["source_sha256"] != manifest["source_sha256"]:
        raise BadInput(
            f"--output_dir {directory}: holds an export of another network; use another directory"
        )
    if existing:
        return existing
    spec.make().check(source.model)
    with _remove_new_parents(directory), directories.new_directory(directory) as unfinished:
        return writing.write_export(unfinished, source, manifest)


@contextmanager
def _remove_new_parents(directory: Path) -> Iterator[None]:
    """If the block fails, remove the parents of `directory` that did not exist before."""
    new = [parent for parent in directory.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # stops at the first one that is not empty
            for parent in new:
                parent.rmdir()
        raise


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """The flags of `lth_scale.export`."""

    source: str = flag(
        f"what to export: {WANTED}", MISSING, positional=True, metavar="RUN_OR_CHECKPOINT"
    )
    format: str = flag("format, see below", MISSING, registry="format")
    output_dir: str = flag("a new directory", MISSING, metavar="DIR")
    dtype: str | None = flag(
        "dtype of the values on disk; half precision and int8 lose digits",
        choices=tuple(sorted({dtype for kind in FORMATS.values() for dtype in kind.dtypes})),
    )


def formats_table() -> str:
    """Return the formats, their dtypes and what they are for, for `--help`."""
    rows = (f"  {name:<8} {' or '.join(x.dtypes):<20} {x.about}" for name, x in FORMATS.items())
    return "\n".join(["formats and their dtypes (the first is the default):", *rows])


def run(args: ExportFlags) -> None:
    """Export a network, unless that is done, and print a summary. Raises BadInput."""
    directory = Path(args.output_dir)
    is_done = os.path.lexists(directory / MANIFEST)
    manifest = export(args.source, args.format, directory, args.dtype)
    if is_done:
        print("already exported; nothing was done")
    print(summary(manifest, directory))


def summary(manifest: dict[str, Any], directory: Path) -> str:
    """Describe an export: its size, its difference from the model, and how to load it."""
    sizes = [
        f"{name} {(directory / name).stat().st_size / 1e6:.1f} MB"
        for name in manifest["files"]
        if name.endswith((".safetensors", ".onnx", ".data"))
    ]
    differences = [
        "{:<11} {absolute:.2g} at most, {relative:.2g} of the largest output".format(
            title, **manifest[key]
        )
        for key, title in (("difference", "difference"), ("difference_int8", "  of int8"))
        if key in manifest
    ]
    values = {"path": quoted(directory), "directory": str(directory), "sizes": ", ".join(sizes)}
    values |= {"dense": manifest["dense_bytes"] / 1e6, "differences": "\n".join(differences)}
    return printable(SUMMARY.format_map(manifest | values))
