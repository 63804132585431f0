"""The cost of a study before it runs."""

import math
from pathlib import Path

from lth_scale.config import checks, files
from lth_scale.config.arguments import Arguments, Training
from lth_scale.config.errors import BadInput
from lth_scale.science.jobs import Job
from lth_scale.science.runner import Runner
from lth_scale.tasks.registry import TASKS

FOOTER = (
    "Steps are those of one device; hours are estimated from the finished jobs of each task "
    "in this directory."
)


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
        return steps
    after_rewinding = steps - int(checks.parse_rewind_step(args.rewind_step, int(steps)))
    return (0 if args.dense else steps) + (len(job.sparsities) - 1) * after_rewinding


def seconds_per_step(runner: Runner) -> dict[str, float]:
    """By task, as measured in its finished jobs, evaluation included. Raises BadInput."""
    totals: dict[str, tuple[float, float]] = {}
    for job in filter(runner.is_done, runner.plan.jobs.values()):
        path = runner.path(job, "/results.json")
        steps, seconds = totals.get(job.args.task, (0.0, 0.0))
        try:
            for row in files.read_json(path):
                steps += float(row["steps"])
                seconds += float(row["seconds"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            raise BadInput(
                f"{path}: is damaged or missing; restore it or delete {path.parent}"
            ) from problem
        totals[job.args.task] = steps, seconds
    return {task: seconds / steps for task, (steps, seconds) in totals.items() if steps}


def costs(runner: Runner) -> str:
    """A line per job with its cost, and the total of the jobs that are not done.

    What is unknown is `?`.
    """
    measured, remaining = seconds_per_step(runner), []
    line = "{:<6}{:>11,}{:>18,}{:>9,.3f}  {}".format
    lines = ["state       steps    tokens at most    hours  job (needs)"]
    for job in runner.jobs:
        args, steps = job.args, steps_of(job)
        tokens = steps * _examples_per_step(args) * args.max_seq_length
        hours = steps * measured.get(args.task, math.nan) / 3600
        done = runner.is_done(job)
        if not done:
            remaining.append((steps, tokens, hours))
        needs = f" ({', '.join(job.needs)})" if job.needs else ""
        lines.append(line("done" if done else "to do", steps, tokens, hours, job.id + needs))
    total = [sum(cost[i] for cost in remaining) for i in range(3)]
    lines += [line("in all", *total, f"{len(remaining)} of {len(runner.jobs)} jobs to do"), FOOTER]
    return "\n".join(lines).replace(" nan", "   ?")
