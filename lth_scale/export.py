"""Write a ticket's network in the format of --format, read it back and compare.

`python -m lth_scale.export runs/sst2-bert-base-uncased --format compact --output_dir exported`
"""

from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.shipping.export.export import (
    ExportFlags,
    export,
    formats_table,
    load_exported,
    run,
    summary,
)

__all__ = ["COMMAND", "export", "load_exported", "main", "summary"]

COMMAND = Command(
    name="export",
    summary="write a ticket's network in a format that others load",
    description="Export a ticket's network, and check that its outputs stay the same.",
    flags=ExportFlags,
    run=run,
    epilog=formats_table,
    one_process=True,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)
