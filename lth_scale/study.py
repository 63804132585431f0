"""Run a grid of searches and transfers: `python -m lth_scale.study studies/demo.yaml`."""

from lth_scale import imp, transfer
from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.science import study_command
from lth_scale.science.study_command import StudyFlags, extra, overrides, resolve

__all__ = ["COMMAND", "main", "overrides"]

JOBS = {command.name: command for command in (imp.COMMAND, transfer.COMMAND)}


def run(args: StudyFlags) -> None:
    """Run the jobs of a study that are not done. Raises BadInput."""
    study_command.run(args, lambda job: JOBS[job.kind].words(job.flags))


COMMAND = Command(
    name="study",
    summary="run a grid of searches and transfers, each once",
    description="Run a grid of jobs, each once. Any further --flag value applies to every job "
    "and overrides the file.",
    flags=StudyFlags,
    run=run,
    resolve=resolve,
    extra=extra,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)
