"""Run a study: each job of its grid once, in processes of their own, however often it is stopped and started.

`python -m lth_scale.study studies/demo.yaml`
"""

import fcntl
import functools
import json
import lzma
import math
import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired

from lth_scale import arguments, files
from lth_scale.arguments import Arguments, BadInput, Training, exit_on_bad_input
from lth_scale.grid import Flags, Job, Plan, as_argv, load, plan, summary

POLL_SECONDS = 1.0
GRACE_SECONDS = 30.0
# Training examples, for the costs where the data is not at hand: the data sets' own sizes, which agree with Table 1 of
# Chen et al. 2020 (squad: windows of 384 tokens). A round of mlm is counted in steps.
ROWS = {"mnli": 392_702, "qqp": 363_846, "stsb": 5_749, "wnli": 635, "qnli": 104_743, "mrpc": 3_668, "rte": 2_490,
        "sst2": 67_349, "cola": 8_551, "squad": 88_641}  # fmt: skip


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
        left = [job for job in self.jobs if not self.is_done(job)]
        told = False
        while left:
            still = [job for job in left if not self.settle(job)]
            if len(still) == len(left):
                if not told:
                    print(f"waiting for {left[0].id}, which another process runs", flush=True)
                told = True
                time.sleep(POLL_SECONDS)
            left = still

    def settle(self, job: Job) -> bool:
        """Run a job if that can be done now. True where nothing is left to do about it."""
        lost = [need for need in job.needs if need in self.failed or need in self.waiting]
        if lost:
            self.waiting[job.id] = f"needs {lost[0]}"
            return True
        if not all(self.is_done(self.made.jobs[need]) for need in job.needs):
            return False
        with open(self.path(job, ".lock"), "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not self.is_done(job):
                self.start(job, lock.fileno())
        return True

    def start(self, job: Job, lock: int) -> None:
        """Run a job and say how it went."""
        print(f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.id} … ", end="", flush=True)
        began = time.monotonic()
        code = self.call(job, lock)
        took = time.monotonic() - began
        if self.is_done(job):
            print(f"done, {took:.0f} s", flush=True)
        else:
            self.failed[job.id] = f"exit code {code}: {last_lines(self.path(job, '.log'))}"
            print(f"failed, {took:.0f} s, {self.failed[job.id]}", flush=True)

    def call(self, job: Job, lock: int) -> int:
        """The exit code of a job's process, which holds the lock too and so outlives a study that is killed."""
        with open(self.path(job, ".log"), "ab") as log:
            command = self.command(job)
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            child = Popen(command, stdin=DEVNULL, stdout=log, stderr=STDOUT, pass_fds=[lock], start_new_session=True)
            try:
                return child.wait()
            finally:
                end(child)

    def command(self, job: Job) -> list[str]:
        """A job's command line."""
        launcher = shlex.split(self.made.studies[0].launcher) or [sys.executable, "-m"]
        flags: Flags = {**job.flags, "output_dir": self.path(job)}
        flags |= {name: self.directory / flags[name] for name in ("ticket", "dense") if name in flags}
        return [*launcher, f"lth_scale.{job.kind}", *as_argv(flags)]

    def table(self) -> str:
        """How many jobs are done, and why the others are not."""
        done = sum(self.is_done(job) for job in self.jobs)
        counts = {"done": done, "failed": len(self.failed), "waiting": len(self.waiting)}
        lines = ["", "| state   | jobs |", "|---------|------|"]
        lines += [f"| {state:<7} | {count:4} |" for state, count in counts.items()]
        lines += [""] if self.failed else []
        lines += [f"failed   {job}: {why} (jobs/{job}.log)" for job, why in self.failed.items()]
        return "\n".join([*lines, *(f"waiting  {job}: {why}" for job, why in self.waiting.items())])


def end(child: Popen) -> None:
    """Stop a job and the processes it started, if it still runs."""
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_SECONDS)
    except TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_lines(log: Path, count: int = 2) -> str:
    """The end of a log."""
    lines = [line.strip() for line in log.read_bytes()[-4096:].decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line and not line.startswith("$ ")][-count:])


def share(made: Plan, index: int, of: int) -> list[Job]:
    """Every `of`-th job from `index` on, and what those need."""
    wanted = {job.id for position, job in enumerate(made.jobs.values()) if position % of == index}
    for job in reversed(made.jobs.values()):  # a job comes after what it needs
        wanted |= set(job.needs) if job.id in wanted else set()
    return [job for job in made.jobs.values() if job.id in wanted]


def refuse_other_flags(made: Plan, directory: Path) -> None:
    """Refuse to mix jobs that were begun with other flags. Raises BadInput."""
    try:
        before = {job["id"]: job["flags"] for job in json.loads((directory / "study.json").read_text())["jobs"]}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"--output_dir {directory}: its study.json is damaged; delete that file") from None
    for job in made.jobs.values():
        old: Flags = before.get(job.id, job.flags)
        differ = [name for name in {**old, **job.flags} if old.get(name) != job.flags.get(name)]
        home = directory / "jobs" / job.id
        for name in differ:
            if home.exists() and name not in arguments.COSMETIC:
                raise BadInput(
                    f"--output_dir {directory}: {job.id} was begun with --{name} {old.get(name)}, is now to have "
                    f"{job.flags.get(name)}; give another directory, or delete {home}"
                )


@functools.cache
def count_rows(directory: Path) -> int | None:
    """Lines of train.jsonl, or of its .xz; None where there is neither."""
    for name, reader in (("train.jsonl", open), ("train.jsonl.xz", lzma.open)):
        if (directory / name).is_file():
            with reader(directory / name, "rb") as lines:
                return sum(1 for line in lines if line.strip())
    return None


def steps_a_round(args: Training) -> int | None:
    """Optimizer steps of one training on one device, or None where that cannot be known before it starts."""
    if args.max_steps >= 0:
        return args.max_steps
    rows = ROWS.get(args.task)
    if args.dataset_path and rows:  # a line of mlm is not an example
        is_embedded = args.dataset_path == arguments.EMBEDDED
        rows = count_rows(arguments.embedded_path(args.task) if is_embedded else Path(args.dataset_path))
    rows = min(filter(None, (rows, args.max_train_samples)), default=None)
    whole = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return None if rows is None else math.ceil(args.num_train_epochs * math.ceil(rows / whole))


def steps_of(job: Job) -> int | None:
    """Optimizer steps of a job: of all the rounds that it trains itself. Raises BadInput."""
    one = steps_a_round(job.args)
    if one is None or not isinstance(job.args, Arguments):
        return one
    later = one - int(arguments.parse_rewind_step(job.args.rewind_step, one))
    return (0 if job.args.dense else one) + (len(job.ladder) - 1) * later


def seconds_a_step(runner: Runner) -> dict[str, float]:
    """By task, as measured in its finished jobs, evaluation included."""
    rows: dict[str, list[dict]] = {}
    for job in filter(runner.is_done, runner.made.jobs.values()):
        rows.setdefault(job.args.task, []).extend(json.loads(runner.path(job, "/results.json").read_text()))
    steps = {task: sum(row["steps"] for row in those) for task, those in rows.items()}
    return {task: sum(row["seconds"] for row in rows[task]) / count for task, count in steps.items() if count}


def costs(runner: Runner) -> str:
    """Each job with what it costs, and what the jobs that are not done cost in all."""
    measured = seconds_a_step(runner)
    left: list[list[float | None]] = []
    lines = [f"{'state':<6}{'steps':>11}{'tokens at most':>18}{'hours':>9}  job (needs)"]
    for job in runner.jobs:
        args, steps, rate = job.args, steps_of(job), measured.get(job.args.task)
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.max_seq_length
        cost: list[float | None] = [None] * 3
        if steps is not None:
            cost = [steps, steps * size, None if rate is None else rate * steps / 3600]
        left += [] if runner.is_done(job) else [cost]
        needs = f" ({', '.join(job.needs)})" if job.needs else ""
        lines.append(f"{'done' if runner.is_done(job) else 'to do':<6}{columns(cost)}  {job.id}{needs}")
    known = [[value for cost in left if (value := cost[i]) is not None] for i in range(3)]
    unknown = len(left) - len(known[2])
    total: list[float | None] = [sum(values) if values or not left else None for values in known]
    lines += [
        f"{'in all':<6}{columns(total)}  {len(left)} of {len(runner.jobs)} jobs to do",
        "Steps are those of one device. Hours go by finished jobs of the same task in this directory;",
        f"what is not measured is not known, nor in the sum: {unknown} of the {len(left)} jobs ('?').",
    ]
    return "\n".join(lines)


def columns(cost: Sequence[float | None]) -> str:
    """Steps, tokens and hours of a line; ? is what is not known."""
    shown = ["?" if value is None else f"{value:,.{digits}f}" for value, digits in zip(cost, (0, 0, 3), strict=True)]
    return f"{shown[0]:>11}{shown[1]:>18}{shown[2]:>9}"


def overrides(rest: Iterable[str]) -> Flags:
    """`--flag value …` for every job. Raises BadInput."""
    given: Flags = {}
    for part in rest:
        name, equals, value = part.removeprefix("--").partition("=")
        if part.startswith("--"):
            given[name] = value if equals else True
        elif given and given[name := list(given)[-1]] is True:
            given[name] = part
        else:
            raise BadInput(f"{part}: belongs to no flag; give STUDY.yaml first, then --flag value")
    return given


def command_line() -> tuple[Namespace, Flags]:
    """The study's own flags, and those for its jobs. Raises BadInput."""
    parser = arguments.OneLineParser(
        prog="lth_scale.study",
        description="Run a grid of searches, controls and transfers, each job once. Any further --flag value of "
        "lth_scale.imp or lth_scale.transfer is given to every job, and wins over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="what to run: studies/*.yaml, docs/studies.md")
    parser.add_argument("--output_dir", type=Path, help="where everything is written (default: runs/NAME)")
    parser.add_argument("--dry_run", action="store_true", help="print the jobs and their costs, and write nothing")
    parser.add_argument("--index", type=int, default=0, help="run a share: every N-th job from this one on, from 0")
    parser.add_argument("--of", type=int, default=1, metavar="N", help="how many shares there are")
    given, rest = parser.parse_known_args()
    if not 0 <= given.index < given.of:
        raise BadInput(f"--index {given.index} --of {given.of}: no such share; give --index from 0 to below --of")
    return given, overrides(rest)


def stop(number: int, _frame: object) -> None:
    """A signal: leave, and end the job on the way out."""
    sys.exit(128 + number)


def main() -> None:
    """The command line of `lth_scale.study`."""
    given, flags = command_line()
    made = plan(load(given.study, flags))
    directory = given.output_dir or Path("runs") / made.studies[0].name
    refuse_other_flags(made, directory)
    runner = Runner(made, directory, share(made, given.index, given.of))
    if given.dry_run:
        print(costs(runner))
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    files.write_json(directory / "study.json", summary(made))
    runner.run()
    print(runner.table(), flush=True)
    if runner.failed or runner.waiting:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_bad_input(main)
