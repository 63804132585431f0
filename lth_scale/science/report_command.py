"""What `python -m lth_scale.report` does: write the report of a study and log it."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config import directories
from lth_scale.config.command import construct
from lth_scale.config.flags import DELTA, flag, report_to_flag
from lth_scale.config.texts import printable, quoted
from lth_scale.tracking.mlflow import settings


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """The flags of `lth_scale.report`."""

    directory: str = flag("directory of a study", MISSING, positional=True, metavar="DIRECTORY")
    delta: float | None = flag(
        "loss that matching tolerates, in the unit printed (default: 1 for percentages)",
        range=DELTA,
    )
    output_dir: str | None = flag(
        "directory of the report (default: DIRECTORY/report)", metavar="DIR"
    )
    save: str | None = flag("also save what the report needs in one file", metavar="FILE.json")
    report_to: str = report_to_flag()


def resolve(values: dict[str, Any], flags: type[ReportFlags]) -> ReportFlags:
    """Return the checked flags. Raises BadInput."""
    args = construct(values, flags)
    if args.report_to == "mlflow":
        settings.check_variables()
    if args.save:
        with directories.must_be_writable(f"--save {args.save}", "use another file"):
            directories.check_writable(Path(args.save).parent)
    return args


def run(args: ReportFlags) -> None:
    """Write the report, log it, and print its answer and where it is. Raises BadInput."""
    from lth_scale.science import report, results, saved  # they import pandas and scipy
    from lth_scale.science.sections.answer import answer
    from lth_scale.science.sections.verdicts import matching_tickets

    directory = Path(args.directory)
    study = results.load_results(directory)
    output = Path(args.output_dir or directory / "report")
    if args.save:
        saved.save(directory, Path(args.save))
    with directories.must_be_writable(f"--output_dir {output}"):
        written = report.write_report(study, output, args.delta)
    planned, finished = len(study.conditions), int(study.conditions.value.count())
    print("\n".join(map(printable, answer(study, args.delta).text)), end="\n\n")
    print(f"report   {quoted(output / 'report.html')}\n         {quoted(output / 'report.md')}")
    print(f"runs     {planned} planned, {finished} finished, {planned - finished} missing")
    if args.report_to == "mlflow":
        from lth_scale.tracking.mlflow import runs  # imports mlflow

        local = settings.address(directory.resolve() / "jobs" / "mlflow.db")
        tickets = matching_tickets(study, args.delta)
        baselines = {task: best[1] for task in study.tasks if (best := study.baseline(task))}
        metrics = {f"trivial/{task}": score for task, score in baselines.items()}
        runs.try_to_log(
            local,
            lambda store: runs.log_report(
                store, study.name, written, metrics=metrics, registrations=tickets
            ),
        )
