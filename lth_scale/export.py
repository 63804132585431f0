"""Write a ticket's network in the format of --format, read it back and compare.

`python -m lth_scale.export runs/sst2-bert-base-uncased --format compact --output_dir exported`
"""

import argparse
import os
from pathlib import Path
from typing import Any

from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import OneLineParser
from lth_scale.config.startup import is_main_process
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.export.export import export
from lth_scale.shipping.export.locations import MANIFEST, WANTED
from lth_scale.shipping.export.registry import FORMATS


def build_parser() -> OneLineParser:
    """The flags, and a table of the formats."""
    rows = [
        f"  {name:<8} {' or '.join(kind.dtypes):<20} {kind.about}" for name, kind in FORMATS.items()
    ]
    parser = OneLineParser(
        prog="lth_scale.export",
        description="Export a ticket's network, and check that it answers as before.",
        epilog="\n".join(["formats, and the dtypes they have (the first by default):", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help=f"what to export: {WANTED}")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="how to write it; see below"
    )
    parser.add_argument("--output_dir", required=True, help="a directory that is not there yet")
    parser.add_argument(
        "--dtype",
        choices=sorted({each for kind in FORMATS.values() for each in kind.dtypes}),
        help="of the values on disk; half precision and int8 lose digits",
    )
    return parser


def summary(made: dict[str, Any], directory: Path) -> str:
    """What an export is, how large, how close, and how to load it."""
    sizes = [
        f"{name} {(directory / name).stat().st_size / 1e6:.1f} MB"
        for name in made["files"]
        if name.endswith((".safetensors", ".onnx", ".data"))
    ]
    pairs = {"difference": made["difference"], "  of int8": made.get("difference_int8")}
    lines = [
        f"export      {made['kind']} in {made['dtype']}, {made['architecture']}: {quoted(directory)}",
        f"size        {', '.join(sizes)} (dense in fp32: {made['dense_bytes'] / 1e6:.1f} MB)",
        f"sparsity    {made['sparsity']:.2%} ({made['pruned']:,} of {made['prunable']:,} prunable weights)",
        *(
            f"{title:<11} {pair['absolute']:.2g} at most, {pair['relative']:.2g} of the largest output"
            for title, pair in pairs.items()
            if pair
        ),
        f"measured on {made['difference']['inputs']}",
        f"load it     from lth_scale import load_exported; model = load_exported({str(directory)!r})",
    ]
    return printable("\n".join(lines))


def main() -> None:
    """The command line of `lth_scale.export`."""
    if not is_main_process():
        return  # one process of a launcher's is enough
    args = build_parser().parse_args()
    directory = Path(args.output_dir)
    there = os.path.lexists(directory / MANIFEST)
    made = export(args.source, args.format, directory, args.dtype)
    if there:
        print("is there already; nothing was done")
    print(summary(made, directory))


if __name__ == "__main__":
    exit_on_bad_input(main)
