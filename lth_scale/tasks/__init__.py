"""Tasks: data, head and metric. One module a family; nothing here knows of pruning."""

from lth_scale.arguments import Training
from lth_scale.tasks.data import hub_revision
from lth_scale.tasks.task import Task

__all__ = ["Task", "hub_revision", "load"]


def load(args: Training) -> Task:
    """The task of --task with its model, tokenised data and metric. Raises BadInput."""
    if args.task == "mlm":
        from lth_scale.tasks.mlm import load
    elif args.task == "squad":
        from lth_scale.tasks.squad import load
    else:
        from lth_scale.tasks.glue import load
    return load(args)
