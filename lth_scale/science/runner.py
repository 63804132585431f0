"""Run a study, each job once, however often it is stopped: `python -m lth_scale.study studies/demo.yaml`."""

import fcntl
import functools
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import IO, Any

from lth_scale.config import arguments, files, locks, parsers
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.markdown import Table, markdown_table
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.texts import printable, quoted
from lth_scale.science.plans import Job, Plan, as_argv, difference
from lth_scale.science.study_file import Flags
from lth_scale.tracking import provenance
from lth_scale.tracking.stages import starved_in

PARTS = ("name", "cells", "jobs")  # of study.json


@dataclass
class Runner:
    """Runs jobs below `directory`, one at a time; what became of each is in `failed` and `waiting`."""

    made: Plan
    directory: Path
    jobs: list[Job]
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)

    def path(self, job: Job, ending: str = "") -> Path:
        """A job's directory, or a file beside or in it."""
        return self.directory / "jobs" / f"{job.id}{ending}"

    def is_done(self, job: Job) -> bool:
        """True once a job has finished, here or in another process."""
        return self.path(job, "/complete").is_file()

    def run(self) -> None:
        """Run what is not done. A job that another process is on is waited for, and run here should that one die."""
        (self.directory / "jobs").mkdir(parents=True, exist_ok=True)
        left, told = [job for job in self.jobs if not self.is_done(job)], False
        while left:
            before, left = left, [job for job in left if not self.settle(job)]
            if left == before:
                print(
                    "" if told else f"waiting for {left[0].id}, which another process runs\n",
                    end="",
                    flush=True,
                )
                told = True
                time.sleep(1)

    def settle(self, job: Job) -> bool:
        """Run a job if that can be done now. True where nothing is left to do about it."""
        lost = [need for need in job.needs if need in self.failed or need in self.waiting]
        if lost:
            self.waiting[job.id] = f"needs {lost[0]}"
            return True
        if not all(self.is_done(self.made.jobs[need]) for need in job.needs):
            return False
        with self._open(job, ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self.is_done(job):
                self.start(job, lock.fileno())
        return True

    def check(self) -> None:
        """Raise BadInput where something that no study wrote lies in the place of a job's lock or log."""
        for path in (self.path(job, ending) for job in self.jobs for ending in (".lock", ".log")):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise BadInput(f"{path}: is not a file that a study wrote; move it away")

    def _open(self, job: Job, ending: str) -> IO[str]:
        """A file beside a job's directory, to append to. Raises BadInput where something else lies there."""
        path = self.path(job, ending)
        try:
            return os.fdopen(locks.open_own(path, os.O_WRONLY | os.O_APPEND), "a")
        except OSError as problem:
            raise BadInput(
                f"{path}: cannot be written ({problem.strerror}); move it away"
            ) from None

    def start(self, job: Job, lock: int) -> None:
        """Run a job and say how it went. Its process holds the lock too, and so outlives a study that is killed."""
        print(f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.id} … ", end="", flush=True)
        began, command, log = time.monotonic(), self.command(job), self.path(job, ".log")
        with self._open(job, ".log") as to:
            print("$", printable(without_secrets(shlex.join(command))), file=to, flush=True)
            child = Popen(
                command,
                stdin=DEVNULL,
                stdout=to,
                stderr=STDOUT,
                pass_fds=[lock],
                start_new_session=True,
            )
            try:
                child.wait()
            except SystemExit:  # a signal: end the launcher and what it started
                os.killpg(child.pid, signal.SIGTERM)
                child.wait()
                raise
        if not self.is_done(job):
            last = log.read_text(errors="replace").rstrip().splitlines()[-1]
            self.failed[job.id] = (
                f"exit code {child.returncode}: {printable(without_secrets(last))} ({quoted(log)})"
            )
        print(
            "failed" if job.id in self.failed else "done",
            f"after {time.monotonic() - began:.0f} s",
            flush=True,
        )

    def command(self, job: Job) -> list[str]:
        """A job's command line."""
        launcher = self.made.studies[0].keys["launcher"].split() or [sys.executable, "-m"]
        flags: Flags = {**job.flags, "output_dir": self.path(job)}
        flags |= {
            name: self.directory / flags[name] for name in ("ticket", "dense") if name in flags
        }
        verbose = [parsers.VERBOSE] if parsers.is_verbose() else []
        return [*launcher, f"lth_scale.{job.kind}", *as_argv(flags), *verbose]

    def table(self) -> str:
        """How many jobs are done, and why the others are not."""
        counts = {
            "done": sum(map(self.is_done, self.jobs)),
            "failed": len(self.failed),
            "waiting": len(self.waiting),
        }
        rows = [[state, str(count)] for state, count in counts.items()]
        lines = ["", markdown_table(Table("", ["state", "jobs"], rows), align=True)]
        for state, jobs in (("failed", self.failed), ("waiting", self.waiting)):
            lines += [f"{state:<8} {job}: {why}" for job, why in jobs.items()]
        return "\n".join([*lines, *self.starved()])

    def starved(self) -> list[str]:
        """A line for each finished job with a network of which a matrix is all but empty, on the first such one."""
        lines = []
        for job in filter(self.is_done, self.jobs):
            rows = [
                row
                for name in ("results", "controls")
                for row in self._rows(self.path(job, f"/{name}.json"))
            ]
            lines += [
                f"starved  {job.id}: {words}" for words in filter(None, map(starved_in, rows))
            ][:1]
        return lines

    def _rows(self, file: Path) -> list[dict[str, Any]]:
        try:
            rows = files.read_json(file)
        except (OSError, ValueError, RecursionError):
            return []  # none of this job, or damaged, as the report will say
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def share(made: Plan, index: int, of: int) -> list[Job]:
    """Every `of`-th job from `index` on, and what those need."""
    wanted = set(list(made.jobs)[index::of])
    for job in reversed(made.jobs.values()):  # a job comes after what it needs
        wanted |= set(job.needs) if job.id in wanted else set()
    return [job for job in made.jobs.values() if job.id in wanted]


def refuse_other_flags(made: Plan, directory: Path) -> None:
    """Refuse to mix jobs that were begun with other flags. Raises BadInput."""
    path = directory / "study.json"
    if not os.path.lexists(path) and os.path.lexists(directory / "jobs"):
        raise BadInput(
            f"--output_dir {directory}: holds jobs, which no study made; give another directory"
        )
    try:
        known: Any = files.read_json(path) if os.path.lexists(path) else dict.fromkeys(PARTS, ())
        jobs = known["jobs"] or [known[name] for name in PARTS][-1]
        before = {job["id"]: redacted(job["flags"]) for job in jobs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(
            f"--output_dir {directory}: its study.json is damaged, so it is not known with which flags its "
            "jobs were begun; put back a copy of it, or give another directory"
        ) from problem
    for job in made.jobs.values():
        home, now = directory / "jobs" / job.id, redacted(job.flags)
        differ = difference(before.get(job.id, now), now, but=arguments.COSMETIC)
        if differ and (then := begun(home)):
            digests = provenance.content(
                job.args.task, job.args.model_name_or_path, job.args.dataset_path
            )
            told = provenance.told_by_content(then, digests)
            differ = difference(before.get(job.id, now), now, but={*arguments.COSMETIC, *told})
        if differ and home.exists():
            raise BadInput(
                f"--output_dir {directory}: {job.id} was begun with other flags: {differ}, then and now; "
                f"give another directory, or delete {home}"
            )


def refuse_other_content(made: Plan, directory: Path) -> None:
    """Refuse to mix jobs that were begun with other data or another model. Raises BadInput."""
    content = functools.cache(provenance.content)  # many jobs, few files
    for job in made.jobs.values():
        home, args = directory / "jobs" / job.id, job.args
        if not (before := begun(home)):
            continue
        digests = content(args.task, args.model_name_or_path, args.dataset_path)
        differ = provenance.differences(before, {"digests": digests})
        if differ:
            raise BadInput(
                f"--output_dir {directory}: {job.id} was begun with other content ({differ[0]}); put it "
                f"back, give another directory, or delete {home}"
            )


def begun(home: Path) -> dict[str, Any]:
    """arguments.json of a job; {} where it was not begun, or where that is damaged, as its command will say."""
    try:
        before = {**files.read_json(home / "arguments.json")}
        provenance.check_kinds(before)
        return before
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def refuse_other_weights(made: Plan) -> None:
    """Refuse to find tickets in other weights than they are to be trained in. Raises BadInput."""
    digest = functools.cache(base_sha256)
    for job in made.jobs.values():
        if not {"ticket", "model_name_or_path"} <= job.flags.keys() or job.args.allow_other_weights:
            continue  # a ticket brings its base model along
        both = (made.jobs[job.needs[0]].args, job.args)
        source, own = ((args.model_name_or_path, args.model_revision) for args in both)
        found, ours = (digest(*source), digest(*own)) if source != own else ("", "")
        if "" not in (found, ours) and found != ours:
            raise BadInput(
                f"{job.id}: --model_name_or_path {own[0]}: is base_sha256 {ours[:12]}…, and its ticket is to be found "
                f"in {found[:12]}… of {source[0]}: other weights; give both one model, or --allow_other_weights"
            )


def base_sha256(model: str, revision: str | None) -> str:
    """The digest of a model's weights, by which a ticket knows its base; '' where it cannot be loaded here and now."""
    from transformers import AutoModelForSequenceClassification  # imports torch

    from lth_scale.tasks.loading import load_model, load_tokenizer

    args = Training(task="sst2", model_name_or_path=model, model_revision=revision)
    try:
        return load_model(
            args, AutoModelForSequenceClassification, load_tokenizer(args)
        ).base_sha256
    except BadInput:
        return ""  # as its job will say
