"""What a study costs, before it runs."""

import math
from pathlib import Path

from lth_scale.config import checks, files
from lth_scale.config.arguments import Arguments, Training
from lth_scale.config.errors import BadInput
from lth_scale.science.plans import Job
from lth_scale.science.runner import Runner
from lth_scale.tasks.registry import TASKS


def steps_a_round(args: Training) -> float:
    """Optimizer steps of one training on one device, or nan where that cannot be known before it starts."""
    if args.max_steps >= 0:
        return args.max_steps
    rows, file = (
        TASKS[args.task].training_rows or math.inf,
        Path(args.dataset_path or "", "train.jsonl"),
    )
    if args.dataset_path and TASKS[args.task].training_rows:  # a line of mlm is not an example
        rows = file.read_bytes().count(b"\n") if file.is_file() else math.inf
    rows = min(rows, args.max_train_samples or math.inf)
    whole = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return (
        math.nan if rows == math.inf else math.ceil(args.num_train_epochs * math.ceil(rows / whole))
    )


def steps_of(job: Job) -> float:
    """Optimizer steps of a job: of all the rounds that it trains itself. Raises BadInput."""
    try:
        one = steps_a_round(job.args)
    except OverflowError:
        raise BadInput(
            f"{job.id}: --num_train_epochs {job.args.num_train_epochs}: is more than can be counted; give less"
        ) from None
    if math.isnan(one) or not isinstance(job.args, Arguments):
        return one
    later = one - int(checks.parse_rewind_step(job.args.rewind_step, int(one)))
    return (0 if job.args.dense else one) + (len(job.ladder) - 1) * later


def seconds_a_step(runner: Runner) -> dict[str, float]:
    """By task, as measured in its finished jobs, evaluation included."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for job in filter(runner.is_done, runner.made.jobs.values()):
        file = runner.path(job, "/results.json")
        try:
            those = [(float(row["steps"]), float(row["seconds"])) for row in files.read_json(file)]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            raise BadInput(
                f"{file}: is damaged or missing; put back a copy of it, or delete {file.parent}"
            ) from problem
        rows.setdefault(job.args.task, []).extend(those)
    sums = {
        task: [sum(column) for column in zip(*those, strict=True)] for task, those in rows.items()
    }
    return {task: seconds / steps for task, (steps, seconds) in sums.items() if steps}


def costs(runner: Runner) -> str:
    """Each job with what it costs, and what the jobs that are not done cost in all; ? is what is not known."""
    measured, left = seconds_a_step(runner), []
    line = "{:<6}{:>11,}{:>18,}{:>9,.3f}  {}".format
    lines = ["state       steps    tokens at most    hours  job (needs)"]
    for job in runner.jobs:
        args, steps, state = job.args, steps_of(job), "done" if runner.is_done(job) else "to do"
        tokens = (
            steps
            * args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * args.max_seq_length
        )
        cost = [steps, tokens, steps * measured.get(args.task, math.nan) / 3600]
        left += [cost] if state == "to do" else []
        lines.append(
            line(state, *cost, job.id + (f" ({', '.join(job.needs)})" if job.needs else ""))
        )
    total = [sum(cost[i] for cost in left) for i in range(3)]
    lines.append(line("in all", *total, f"{len(left)} of {len(runner.jobs)} jobs to do"))
    lines.append(
        "Steps are those of one device; hours go by the finished jobs of each task in this directory."
    )
    return "\n".join(lines).replace(" nan", "   ?")
