"""Whether a network can read a task's rows, before anything is prepared or written."""

import torch
from datasets import Dataset
from torch import Tensor

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.config.texts import first_line
from lth_scale.tasks import data_warnings
from lth_scale.tasks.task import Task
from lth_scale.training.batches import select_rows, token_counts


def check_forward(task: Task, args: Training) -> None:
    """Run forward passes of the shortest rows, and of rows padded to the longest, on the CPU.

    Networks that choose an implementation at their first short batch (BigBird drops its sparse
    attention then) choose it here, so that every round and every resumed run uses the same one.
    Raises BadInput if a row is empty, a pass fails or an output is not finite.
    """
    check_rows(task, args)
    name = f"--model_name_or_path {args.model_name_or_path}: {type(task.model).__name__}"
    try:
        batches = probe_batches(task)
        outputs = [training_outputs(task, batch) for batch in (*batches, batches[0])]
    except Exception as problem:  # a network may raise any exception
        raise BadInput(
            f"{name} cannot read the rows of --task {args.task} ({first_line(problem)}); "
            "use another encoder"
        ) from problem
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise BadInput(
            f"{name} returns NaN or infinity for rows of --task {args.task}; use another encoder"
        )
    if not torch.equal(outputs[0], outputs[-1]):
        warn(
            "%s draws random numbers that no seed controls: the same command gives different "
            "scores each time",
            name,
        )


def check_rows(task: Task, args: Training) -> None:
    """Raise BadInput if a row has no tokens."""
    splits = {"train": task.train, "validation": task.validation, **task.more}
    for split, rows in splits.items():
        lengths = token_counts(rows)
        if 0 in lengths:
            raise BadInput(
                f"{data_warnings.split_name(args, split)}: row {lengths.index(0) + 1} is empty, "
                f"and the tokenizer of {args.model_name_or_path} adds no token; fill it, or "
                "remove the row"
            )


def probe_batches(task: Task) -> list[dict[str, Tensor]]:
    """Return the shortest row of train, it and the longest, and the shortest of validation."""
    shortest, longest = extreme_rows(task.train)
    shortest_eval, _ = extreme_rows(task.validation)
    return [
        task.collate(select_rows(task.train, [shortest])),
        task.collate(select_rows(task.train, [shortest, longest])),
        task.eval_collate(select_rows(task.validation, [shortest_eval])),
    ]


def extreme_rows(rows: Dataset) -> tuple[int, int]:
    """Return the numbers of the shortest and the longest row."""
    lengths = token_counts(rows)
    return lengths.index(min(lengths)), lengths.index(max(lengths))


@torch.no_grad()
def training_outputs(task: Task, batch: dict[str, Tensor]) -> Tensor:
    """Return the outputs in training mode, always for the same state of the CPU's generator."""
    task.model.train()
    with torch.random.fork_rng(devices=[]):
        return task.loss(task.model, batch)[1]
