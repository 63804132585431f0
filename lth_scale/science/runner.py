"""Running the jobs of a study, each once, however often the study is stopped."""

import fcntl
import os
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import IO, Any

from lth_scale.config import files, locks
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import Table, markdown_table
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable, quoted
from lth_scale.science.jobs import Job
from lth_scale.science.plans import Plan
from lth_scale.tracking.rows import describe_starved


@dataclass
class Runner:
    """Runs jobs below `directory`, one at a time.

    jobs: this process's part of the plan. command: the command line of a job whose paths are
    resolved. failed, waiting: the reason by job.
    """

    plan: Plan
    directory: Path
    jobs: list[Job]
    command: Callable[[Job], list[str]]
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)

    def path(self, job: Job, suffix: str = "") -> Path:
        """A job's directory, or a file beside or in it."""
        return self.directory / "jobs" / f"{job.id}{suffix}"

    def is_done(self, job: Job) -> bool:
        """True once a job has finished, here or in another process."""
        return self.path(job, "/complete").is_file()

    def run(self) -> None:
        """Run all jobs that are not done.

        A job that another process is running is waited for, and run here if that process dies.
        """
        (self.directory / "jobs").mkdir(parents=True, exist_ok=True)
        pending = [job for job in self.jobs if not self.is_done(job)]
        announced = False
        while pending:
            before, pending = pending, [job for job in pending if not self.advance(job)]
            if pending != before:
                continue
            if not announced:
                print(f"waiting for {pending[0].id}, which another process runs", flush=True)
                announced = True
            time.sleep(1)

    def advance(self, job: Job) -> bool:
        """Run a job if that is possible now. Returns True if nothing remains to be done for it."""
        lost = [need for need in job.needs if need in self.failed or need in self.waiting]
        if lost:
            self.waiting[job.id] = f"needs {lost[0]}"
            return True
        if not all(self.is_done(self.plan.jobs[need]) for need in job.needs):
            return False
        with self._open(job, ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self.is_done(job):
                self.start(job, lock.fileno())
        return True

    def check_files(self) -> None:
        """Raise BadInput if a job's lock or log is not a file that a study wrote."""
        for path in (self.path(job, suffix) for job in self.jobs for suffix in (".lock", ".log")):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise BadInput(f"{path}: not a file that a study wrote; move it away")

    def _open(self, job: Job, suffix: str) -> IO[str]:
        """Open a file beside a job's directory for appending. Raises BadInput."""
        path = self.path(job, suffix)
        try:
            return os.fdopen(locks.open_own(path, os.O_WRONLY | os.O_APPEND), "a")
        except OSError as problem:
            raise BadInput(
                f"{path}: cannot be written ({problem.strerror}); move it away"
            ) from None

    def start(self, job: Job, lock: int) -> None:
        """Run a job and print how it ended.

        lock: a descriptor that its process holds too, so that it outlives a study that is killed.
        """
        print(f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.id} … ", end="", flush=True)
        began, log = time.monotonic(), self.path(job, ".log")
        exit_code = self._execute(job, lock)
        if not self.is_done(job):
            last = log.read_text(errors="replace").rstrip().splitlines()[-1]
            reason = printable(without_secrets(last))
            self.failed[job.id] = f"exit code {exit_code}: {reason} ({quoted(log)})"
        state = "failed" if job.id in self.failed else "done"
        print(f"{state} after {time.monotonic() - began:.0f} s", flush=True)

    def _execute(self, job: Job, lock: int) -> int:
        """Run a job's command with its output in the job's log, and return the exit code."""
        command = self.command(job.below(self.directory))
        with self._open(job, ".log") as log:
            print("$", printable(without_secrets(shlex.join(command))), file=log, flush=True)
            child = Popen(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                pass_fds=[lock],
                start_new_session=True,
            )
            try:
                return child.wait()
            except SystemExit:  # a signal: stop the launcher and its processes too
                os.killpg(child.pid, signal.SIGTERM)
                child.wait()
                raise

    def table(self) -> str:
        """How many jobs are done, failed and waiting, and why."""
        done = sum(map(self.is_done, self.jobs))
        counts = {"done": done, "failed": len(self.failed), "waiting": len(self.waiting)}
        rows = [[state, str(count)] for state, count in counts.items()]
        lines = ["", markdown_table(Table("", ["state", "jobs"], rows), align=True)]
        for state, jobs in (("failed", self.failed), ("waiting", self.waiting)):
            lines += [f"{state:<8} {job}: {reason}" for job, reason in jobs.items()]
        return "\n".join([*lines, *self.starved()])

    def starved(self) -> list[str]:
        """A line for each finished job with a starved matrix, about its first such network."""
        lines = []
        for job in filter(self.is_done, self.jobs):
            paths = [self.path(job, f"/{name}.json") for name in ("results", "controls")]
            texts = filter(
                None, (describe_starved(row) for path in paths for row in _read_rows(path))
            )
            lines += [f"starved  {job.id}: {text}" for text in texts][:1]
        return lines


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.json; none if it is missing or damaged, which the report says."""
    try:
        rows = files.read_json(path)
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def share(plan: Plan, index: int, count: int) -> list[Job]:
    """Every `count`-th job from `index` on, and the jobs that those need."""
    selected = set(list(plan.jobs)[index::count])
    for job in reversed(plan.jobs.values()):  # a job comes after those it needs
        if job.id in selected:
            selected |= set(job.needs)
    return [job for job in plan.jobs.values() if job.id in selected]
