"""TODO."""

import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from lth_scale.config import files, parsers
from lth_scale.config.errors import BadInput
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.texts import printable
from lth_scale.science.compatibility import check_content, check_flags, check_weights
from lth_scale.science.costs import costs
from lth_scale.science.jobs import Job, as_argv
from lth_scale.science.plans import Plan, build_plan
from lth_scale.science.runner import Runner, share
from lth_scale.science.study_file import LISTS, Flags, load_study
from lth_scale.science.study_schema import check_characters
from lth_scale.tracking.mlflow import variables


def overrides(rest: list[str]) -> Flags:
    """`--flag value …` for every job. Raises BadInput."""
    given: Flags = {}
    for part in rest:
        name, equals, value = part.removeprefix("--").partition("=")
        last = list(given)[-1] if given else ""
        if part.startswith("--"):
            given[name] = ([value] if name in LISTS else value) if equals else True
        elif last and given[last] is True:
            given[last] = [part] if last in LISTS else part
        elif last in LISTS:
            given[last].append(part)
        else:
            raise BadInput(f"{part}: belongs to no flag; give STUDY.yaml first, then --flag value")
    for name, value in given.items():
        check_characters(f"--{name}", value)
    return given


def build_parser() -> parsers.OneLineParser:
    """The study's own flags."""
    what = (
        "Run a grid of jobs, each once; "
        "any further --flag value goes to every job and wins over the file."
    )
    parents = [share_parser()]
    parser = parsers.OneLineParser(
        "lth_scale.study", description=what, allow_abbrev=False, parents=parents
    )
    parser.add_argument(
        "study",
        type=Path,
        metavar="STUDY.yaml",
        help="what to run: studies/*.yaml, docs/studies.md",
    )
    parser.add_argument(
        "--output_dir", type=Path, help="where everything is written (default: runs/NAME)"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the jobs and their costs, and write nothing"
    )
    return parser


def share_parser() -> ArgumentParser:
    """The flags of a share, which are no part of the command that makes the whole."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--index", type=int, default=0, help="run a share: every N-th job from this one on, from 0"
    )
    parser.add_argument("--of", type=int, default=1, metavar="N", help="how many shares there are")
    return parser


def command_line() -> tuple[Namespace, Flags]:
    """The study's own flags, and those for its jobs. Raises BadInput."""
    given, rest = build_parser().parse_known_args()
    if not 0 <= given.index < given.of:
        raise BadInput(
            f"--index {given.index} --of {given.of}: no such share; "
            "use --index from 0 to below --of"
        )
    return given, overrides(rest)


def job_command(plan: Plan, job: Job) -> list[str]:
    """The command line of a job."""
    launcher = plan.studies[0].content.launcher.split() or [sys.executable, "-m"]
    verbose = [parsers.VERBOSE] if parsers.is_verbose() else []
    return [*launcher, f"lth_scale.{job.kind}", *as_argv(job.flags), *verbose]


def main() -> None:
    """The command line of `lth_scale.study`."""
    given, flags = command_line()
    plan = build_plan(load_study(given.study, flags))
    directory = given.output_dir or Path("runs") / plan.studies[0].name
    check_flags(plan, directory)
    check_content(plan, directory)
    check_weights(plan)
    jobs = share(plan, given.index, given.of)
    runner = Runner(plan, directory, jobs, lambda job: job_command(plan, job))
    if given.dry_run:
        print(costs(runner))
        return
    try:
        files.check_writable(directory)
    except OSError as problem:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({problem.strerror}); give another"
        ) from None
    runner.check_files()
    if any(job.args.report_to == "mlflow" for job in runner.jobs):
        variables.check()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # see Runner.start
    whole = share_parser().parse_known_args(sys.argv[1:])[1]
    command = without_secrets(shlex.join(["python", "-m", "lth_scale.study", *whole]))
    files.write_json(directory / "study.json", redacted(plan.to_dict()) | {"command": command})
    runner.run()
    print(printable(runner.table()), flush=True)
    if runner.failed:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_bad_input(main)
