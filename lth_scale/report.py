"""A study as one page, its numbers as one file, or a page written from such files: `python -m lth_scale.report DIR`."""

import argparse
import os
from pathlib import Path

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import OneLineParser, Range, check_ranges
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable, quoted, reason
from lth_scale.science import results, saved, sections
from lth_scale.science.report import write
from lth_scale.tracking.mlflow import variables


def build_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser(
        prog="lth_scale.report", description="Write the report of a study.", allow_abbrev=False
    )
    parser.add_argument("directory", type=Path, help="the directory of a study")
    parser.add_argument(
        "--delta",
        type=float,
        default=1.0,
        help="loss in points that matching tolerates (default 1)",
    )
    parser.add_argument(
        "--output_dir", type=Path, help="where the report is written (default: DIRECTORY/report)"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE.json", help="also keep what the report needs in one file"
    )
    parser.add_argument(
        "--report_to", choices=("mlflow", "none"), default="mlflow", help="where it is logged"
    )
    return parser


def parse() -> argparse.Namespace:
    """The command line. Raises BadInput."""
    args = build_parser().parse_args()
    check_ranges(args, {"delta": Range(0, 100, "percent points, 0 or more, at most 100")})
    if args.report_to == "mlflow":
        variables.check()
    try:
        if args.save:
            directories.check_writable(args.save.parent)
    except OSError as problem:
        raise BadInput(
            f"--save {args.save}: cannot be written ({problem.strerror}); give another"
        ) from None
    return args


def main() -> None:
    """Write the report of the study that the command line names, log it, and say where it is."""
    args = parse()
    study, output = (
        results.load_results(args.directory),
        args.output_dir or args.directory / "report",
    )
    if args.save:
        saved.save(args.directory, args.save)
    try:
        written = write(study, output, args.delta)
    except OSError as problem:
        raise BadInput(
            f"--output_dir {output}: cannot be written ({problem.strerror}); give another"
        ) from None
    there = sum(bool(cell.evals) for cell in study.cells)
    print(f"report   {quoted(output / 'report.html')}\n         {quoted(output / 'report.md')}")
    print(f"cells    {len(study.cells)} planned, {there} there, {len(study.cells) - there} missing")
    if args.report_to == "mlflow":
        from lth_scale.tracking.mlflow import reports  # imports mlflow
        from lth_scale.tracking.mlflow.stores import address

        beside = address(args.directory.resolve() / "jobs" / "mlflow.db")
        store = os.environ.get("MLFLOW_TRACKING_URI") or beside
        try:
            reports.log_report(
                store, study.name, written, verdicts=sections.registered(study, args.delta)
            )
            print(f"MLflow   logged to {printable(without_secrets(store))}")
        except Exception as problem:  # MLflow raises many kinds, and the report is written
            print(printable(f"MLflow   not logged to {without_secrets(store)}: {reason(problem)}"))


if __name__ == "__main__":
    exit_on_bad_input(main)
