"""Write the report of a study, and its numbers as one file: `python -m lth_scale.report DIR`."""

from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.science.report_command import ReportFlags, resolve, run

COMMAND = Command(
    name="report",
    summary="write the report of a study",
    flags=ReportFlags,
    run=run,
    resolve=resolve,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)
