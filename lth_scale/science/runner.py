"""Running the jobs of a study, each once, however often the study is stopped; and their cost."""

import fcntl
import math
import os
import shlex
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import IO

from lth_scale.config import checks, directories, files
from lth_scale.config.arguments import Arguments, Training
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import Table, markdown_table
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable, quoted
from lth_scale.science.plans import Job, Plan
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.stages import Row, describe_starved

FOOTER = (
    "Steps are those of one device; hours are estimated from the finished jobs of each task in "
    "this directory."
)


@dataclass
class Runner:
    """Runs jobs in `directory`, one at a time.

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

    def check_files(self) -> None:
        """Raise BadInput if the lock or log of a job is not a regular file."""
        for path in (self.path(job, suffix) for job in self.jobs for suffix in (".lock", ".log")):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise BadInput(f"{path}: was not written by a study; move it away")

    def run(self) -> None:
        """Run all jobs that are not done.

        Waits for a job that another process is running, and runs it if that process dies.
        """
        (self.directory / "jobs").mkdir(parents=True, exist_ok=True)
        pending = [job for job in self.jobs if not self.is_done(job)]
        announced = False
        while pending:
            before, pending = pending, [job for job in pending if not self._advance(job)]
            if pending != before:
                continue
            if not announced:
                print(f"waiting for {pending[0].id}, which another process is running", flush=True)
                announced = True
            time.sleep(1)

    def _advance(self, job: Job) -> bool:
        """Run a job if possible now. Returns True if nothing remains to be done for it."""
        if lost := [need for need in job.needs if need in self.failed or need in self.waiting]:
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
                self._start(job, lock.fileno())
        return True

    def _open(self, job: Job, suffix: str) -> IO[str]:
        path = self.path(job, suffix)
        with directories.must_be_writable(str(path), "move it away"):
            return os.fdopen(directories.open_own(path, os.O_WRONLY | os.O_APPEND), "a")

    def _start(self, job: Job, lock: int) -> None:
        """Run a job and print the outcome.

        lock: a descriptor that its process inherits, so that the lock outlives a killed study.
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
        """Run a job's command, with its output in the job's log. Returns the exit code."""
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
        """A table of jobs by state, with reasons and warnings."""
        counts = {
            "done": sum(map(self.is_done, self.jobs)),
            "failed": len(self.failed),
            "waiting": len(self.waiting),
        }
        rows = [[state, str(count)] for state, count in counts.items()]
        lines = ["", markdown_table(Table("", ["state", "jobs"], rows), align=True)]
        for state, jobs in (("failed", self.failed), ("waiting", self.waiting)):
            lines += [f"{state:<8} {job}: {reason}" for job, reason in jobs.items()]
        return "\n".join([*lines, *self._warnings()])

    def _warnings(self) -> list[str]:
        """A line per finished job with a nearly empty matrix."""
        lines = []
        for job in filter(self.is_done, self.jobs):
            paths = [self.path(job, f"/{name}.json") for name in ("results", "controls")]
            texts = (describe_starved(row) for path in paths for row in _read_rows(path))
            lines += [f"warning  {job.id}: {text}" for text in texts if text][:1]
        return lines

    def costs(self) -> str:
        """A line per job with its cost, and the total of the jobs that are not done.

        Unknown numbers are `?`. Raises BadInput.
        """
        measured, remaining = self._seconds_per_step(), []
        line = "{:<6}{:>11,}{:>18,}{:>9,.3f}  {}".format
        lines = ["state       steps    tokens at most    hours  job (needs)"]
        for job in self.jobs:
            args, steps = job.args, steps_of(job)
            tokens = steps * _examples_per_step(args) * args.max_seq_length
            hours = steps * measured.get(args.task, math.nan) / 3600
            done = self.is_done(job)
            if not done:
                remaining.append((steps, tokens, hours))
            needs = f" ({', '.join(job.needs)})" if job.needs else ""
            lines.append(line("done" if done else "to do", steps, tokens, hours, job.id + needs))
        total = [sum(cost[i] for cost in remaining) for i in range(3)]
        lines.append(line("in all", *total, f"{len(remaining)} of {len(self.jobs)} jobs to do"))
        return "\n".join([*lines, FOOTER]).replace(" nan", "   ?")

    def _seconds_per_step(self) -> dict[str, float]:
        """By task, as measured in finished jobs, evaluation included. Raises BadInput."""
        steps, seconds = defaultdict[str, float](float), defaultdict[str, float](float)
        for job in filter(self.is_done, self.plan.jobs.values()):
            path = self.path(job, "/results.json")
            try:
                for row in files.read_json(path):
                    steps[job.args.task] += float(row["steps"])
                    seconds[job.args.task] += float(row["seconds"])
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                OverflowError,
                RecursionError,
            ) as error:
                raise BadInput(
                    f"{path}: is damaged or missing: restore a copy of it or delete {path.parent}"
                ) from error
        return {task: seconds[task] / count for task, count in steps.items() if count}


def _read_rows(path: Path) -> list[Row]:
    """The rows of a results.json; none if it is missing or damaged."""
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


def steps_of(job: Job) -> float:
    """Optimizer steps of all the rounds that a job trains itself. Raises BadInput."""
    args = job.args
    try:
        steps = steps_per_round(args)
    except OverflowError:
        raise BadInput(
            f"{job.id}: --num_train_epochs {args.num_train_epochs}: too many steps to count; "
            "use fewer epochs"
        ) from None
    if math.isnan(steps) or not isinstance(args, Arguments):
        return steps * job.trainings
    after_rewinding = steps - int(checks.parse_rewind_step(args.rewind_step, int(steps)))
    return (0 if args.dense else steps) + (len(job.sparsities) - 1) * after_rewinding


def steps_per_round(args: Training) -> float:
    """Optimizer steps of one training on one device; NaN if unknown before it starts."""
    if args.max_steps >= 0:
        return args.max_steps
    rows: float = TASKS[args.task].training_rows or math.inf
    if args.dataset_path and TASKS[args.task].training_rows:  # a line of mlm is not an example
        file = Path(args.dataset_path, "train.jsonl")
        rows = file.read_bytes().count(b"\n") if file.is_file() else math.inf
    rows = min(rows, args.max_train_samples or math.inf)
    if rows == math.inf:
        return math.nan
    return math.ceil(args.num_train_epochs * math.ceil(rows / _examples_per_step(args)))


def _examples_per_step(args: Training) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps
