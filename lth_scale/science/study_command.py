"""What `python -m lth_scale.study` does: run a grid of jobs, each once."""

import shlex
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from lth_scale.config import directories, files
from lth_scale.config.command import add_flags, construct
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import flag
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.texts import printable
from lth_scale.science.compatibility import check_content, check_flags, check_weights
from lth_scale.science.plans import Job, build_plan
from lth_scale.science.runner import Runner, share
from lth_scale.science.study_file import LISTS, Flags, load_study
from lth_scale.science.study_schema import check_characters
from lth_scale.tracking.mlflow import settings


@dataclass(frozen=True, kw_only=True)
class Share:
    """The flags that select a part of a study's jobs."""

    index: int = flag("run one share of the jobs: every N-th from this one on, counted from 0", 0)
    of: int = flag("number of shares", 1)


@dataclass(frozen=True, kw_only=True)
class StudyFlags(Share):
    """The flags of `lth_scale.study`. `overrides`: the flags of every job."""

    study: str = flag(
        "the study: studies/*.yaml, docs/studies.md", MISSING, positional=True, metavar="STUDY.yaml"
    )
    output_dir: str | None = flag("directory for all output (default: runs/NAME)", metavar="DIR")
    dry_run: bool = flag("print the jobs and their costs, and write nothing", False)
    overrides: Flags = field(default_factory=dict)


def extra(words: list[str]) -> dict[str, Any]:
    """Return the flags of the jobs, `--flag value …`. Raises BadInput."""
    return {"overrides": overrides(words)}


def overrides(words: list[str]) -> Flags:
    """Parse `--flag value …` for every job. Raises BadInput."""
    flags: Flags = {}
    last = ""
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            flags[name] = ([value] if name in LISTS else value) if equals else True
            last = name
        elif last and flags[last] is True:
            flags[last] = [word] if last in LISTS else word
        elif last in LISTS:
            flags[last].append(word)
        else:
            raise BadInput(f"{word}: belongs to no flag; use STUDY.yaml --flag value …")
    for name, value in flags.items():
        check_characters(f"--{name}", value)
    return flags


def resolve(values: dict[str, Any], flags: type[StudyFlags]) -> StudyFlags:
    """Return the checked flags. Raises BadInput."""
    args = construct(values, flags)
    if not 0 <= args.index < args.of:
        raise BadInput(
            f"--index {args.index} --of {args.of}: no such share; use an --index of 0 or more and "
            "below --of"
        )
    return args


def run(args: StudyFlags, command: Callable[[Job], list[str]]) -> None:
    """Run the jobs of a study that are not done, and print a summary. Raises BadInput.

    command: job → its command line, without the launcher.
    """
    plan = build_plan(load_study(Path(args.study), args.overrides))
    directory = Path(args.output_dir or Path("runs", plan.studies[0].name))
    check_flags(plan, directory)
    check_content(plan, directory)
    check_weights(plan)
    launcher = plan.studies[0].content.launcher.split() or [sys.executable, "-m"]
    jobs = share(plan, args.index, args.of)
    runner = Runner(plan, directory, jobs, lambda job: [*launcher, *command(job)])
    if args.dry_run:
        print(runner.costs())
        return
    with directories.must_be_writable(f"--output_dir {directory}"):
        directories.check_writable(directory)
    runner.check_files()
    if any(job.args.report_to == "mlflow" for job in runner.jobs):
        settings.check_variables()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # caught by the runner
    contents = redacted(plan.to_dict()) | {"command": _command_line()}
    files.write_json(directory / "study.json", contents)
    runner.run()
    print(printable(runner.table()), flush=True)
    if runner.failed:
        sys.exit(1)


def _command_line() -> str:
    """This process's command line without --index and --of, which select a share."""
    parser = add_flags(ArgumentParser(add_help=False, allow_abbrev=False), Share)
    whole = parser.parse_known_args()[1]
    return without_secrets(shlex.join(["python", "-m", "lth_scale.study", *whole]))
