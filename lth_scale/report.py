"""A study as one page, its numbers as one file, or a page written from such files: `python -m lth_scale.report DIR`."""

import argparse
import os
from pathlib import Path

from lth_scale import evidence, experiment, files, findings, page
from lth_scale.arguments import (
    BadInput,
    OneLineParser,
    Range,
    check_ranges,
    exit_on_bad_input,
    printable,
    quoted,
    reason,
    without_secrets,
)


def write(study: findings.Study, output: Path, delta: float) -> list[Path]:
    """Write report.html, report.md and the pictures into `output`; `delta` in points. Returns the files.

    Raises FileExistsError where a file of that name is somebody else's, before anything is written.
    """
    made, title = findings.sections(study, delta), f"Report: {study.name}"
    texts = {"report.html": page.html(title, study.note, made), "report.md": page.markdown(title, study.note, made)}
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {name: png for section in made for name, (_, png) in section.pictures.items() if png}
    files.check_listed(output, contents, ("report.html", page.BEGINNING.encode()))
    files.write_listed(output, contents)
    return [output / name for name in contents]


def build_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser(prog="lth_scale.report", description="Write the report of a study.", allow_abbrev=False)
    parser.add_argument("directory", type=Path, help="the directory of a study, or of evidence (page.in)")
    parser.add_argument("--delta", type=float, default=1.0, help="loss in points that matching tolerates (default 1)")
    parser.add_argument("--output_dir", type=Path, help="where the report is written (default: DIRECTORY/report)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="also keep what the report needs in one file")
    parser.add_argument("--report_to", choices=("mlflow", "none"), default="mlflow", help="where it is logged")
    return parser


def parse() -> argparse.Namespace:
    """The command line. Raises BadInput."""
    args = build_parser().parse_args()
    check_ranges(args, {"delta": Range(0, 100, "percent points, 0 or more, at most 100")})
    if args.report_to == "mlflow":
        experiment.check()
    try:
        if args.save:
            files.check_writable(args.save.parent)
    except OSError as problem:
        raise BadInput(f"--save {args.save}: cannot be written ({problem.strerror}); give another") from None
    return args


def main() -> None:
    """Write the report of the study that the command line names, log it, and say where it is."""
    args = parse()
    if os.path.isfile(args.directory / "page.in"):
        if args.output_dir or args.save:
            raise BadInput(f"{args.directory}: has a page.in; leave out --output_dir and --save")
        print(f"page     {quoted(evidence.write(args.directory))}")
        return
    study, output = findings.load(args.directory), args.output_dir or args.directory / "report"
    if args.save:
        evidence.save(args.directory, args.save)
    try:
        written = write(study, output, args.delta)
    except OSError as problem:
        raise BadInput(f"--output_dir {output}: cannot be written ({problem.strerror}); give another") from None
    there = sum(bool(cell.evals) for cell in study.cells)
    print(f"report   {quoted(output / 'report.html')}\n         {quoted(output / 'report.md')}")
    print(f"cells    {len(study.cells)} planned, {there} there, {len(study.cells) - there} missing")
    if args.report_to == "mlflow":
        from lth_scale import tracking  # imports mlflow
        from lth_scale.store import address

        beside = address(args.directory.resolve() / "jobs" / "mlflow.db")
        store = os.environ.get("MLFLOW_TRACKING_URI") or beside
        try:
            tracking.log_report(store, study.name, written, verdicts=findings.registered(study, args.delta))
            print(f"MLflow   logged to {printable(without_secrets(store))}")
        except Exception as problem:  # MLflow raises many kinds, and the report is written
            print(printable(f"MLflow   not logged to {without_secrets(store)}: {reason(problem)}"))


if __name__ == "__main__":
    exit_on_bad_input(main)
