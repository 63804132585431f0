"""What `python -m lth_scale.export` does: write a network in a format, read it back and compare."""

import os
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config.flags import flag
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.export.export import export
from lth_scale.shipping.export.locations import MANIFEST, WANTED
from lth_scale.shipping.export.registry import FORMATS


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
    """Return the formats, their dtypes and what they are for, as the end of `--help`."""
    rows = [
        f"  {name:<8} {' or '.join(kind.dtypes):<20} {kind.about}" for name, kind in FORMATS.items()
    ]
    return "\n".join(["formats and their dtypes (the first is the default):", *rows])


def summary(manifest: dict[str, Any], directory: Path) -> str:
    """Return what an export is, its size, its difference from the model, and how to load it."""
    sizes = [
        f"{name} {(directory / name).stat().st_size / 1e6:.1f} MB"
        for name in manifest["files"]
        if name.endswith((".safetensors", ".onnx", ".data"))
    ]
    kind, dtype, architecture = (manifest[key] for key in ("kind", "dtype", "architecture"))
    pruned, prunable = manifest["pruned"], manifest["prunable"]
    differences = {
        "difference": manifest["difference"],
        "  of int8": manifest.get("difference_int8"),
    }
    lines = [
        f"export      {kind} in {dtype}, {architecture}: {quoted(directory)}",
        f"size        {', '.join(sizes)} (dense in fp32: {manifest['dense_bytes'] / 1e6:.1f} MB)",
        f"sparsity    {manifest['sparsity']:.2%} ({pruned:,} of {prunable:,} prunable weights)",
        *(
            f"{title:<11} {largest['absolute']:.2g} at most, {largest['relative']:.2g} of the "
            "largest output"
            for title, largest in differences.items()
            if largest
        ),
        f"measured on {manifest['difference']['inputs']}",
        "load it     from lth_scale import load_exported; "
        f"model = load_exported({str(directory)!r})",
    ]
    return printable("\n".join(lines))


def run(args: ExportFlags) -> None:
    """Export a network, unless that is done, and print a summary. Raises BadInput."""
    directory = Path(args.output_dir)
    is_done = os.path.lexists(directory / MANIFEST)
    manifest = export(args.source, args.format, directory, args.dtype)
    if is_done:
        print("already exported; nothing was done")
    print(summary(manifest, directory))
