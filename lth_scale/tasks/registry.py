"""Tasks: data, head and metric. One module a family; nothing here knows of pruning."""

from lth_scale.config.arguments import Training
from lth_scale.tasks.base import Task
from lth_scale.tasks.glue import load_glue
from lth_scale.tasks.mlm import load_mlm
from lth_scale.tasks.squad import load_squad


def load_task(args: Training) -> Task:
    """The task of --task with its model, tokenised data and metric. Raises BadInput."""
    if args.task == "mlm":
        return load_mlm(args)
    if args.task == "squad":
        return load_squad(args)
    return load_glue(args)
