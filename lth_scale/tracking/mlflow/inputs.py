"""The data of a task as inputs of MLflow runs."""

import hashlib
import json
from typing import TYPE_CHECKING

from lth_scale.config.arguments import Training
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

    pass

SAMPLE = 1000  # rows of a split that its digest covers, evenly spaced


def describe_data(task: "Task", args: Training) -> list[dict[str, str]]:
    """Describe the tokenized splits of a task as MLflow data sets."""
    more = {f"validation_{suffix}": rows for suffix, rows in task.more.items()}
    source = {"uri": args.dataset_path}
    if not args.dataset_path:
        source = {"path": TASKS[args.task].dataset[0]}
    return [
        {
            "name": f"{args.task} {split}",
            "digest": digest(rows),
            "split": "training" if split == "train" else "validation",
            "kind": "local" if args.dataset_path else "hf",
            "profile": json.dumps({"num_rows": len(rows)}),
            "source": json.dumps(source),
        }
        for split, rows in {"train": task.train, "validation": task.validation, **more}.items()
    ]


def digest(rows: "Dataset") -> str:
    """Return 12 hex digits of the SHA-256 of the number of rows and a sample of them."""
    count = len(rows)
    sample = rows.with_format(None)[:: -(-count // SAMPLE)] if count else {}
    return hashlib.sha256(json.dumps([count, sample], default=str).encode()).hexdigest()[:12]
