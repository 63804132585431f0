"""Tasks by the name of a function: `--task package.module:function`. Does not import torch."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line

if TYPE_CHECKING:
    from lth_scale.tasks.task import Task


def load_custom(args: Training) -> "Task":
    """Call the function that --task names with the resolved flags. Raises BadInput."""
    from lth_scale.tasks.task import Task  # imports torch

    name = f"--task {args.task}"
    task = _function(args.task)(args)
    missing = [part for part in _parts(Task) if not hasattr(task, part)]
    if missing:
        raise BadInput(
            f"{name}: returns a {type(task).__name__} without {', '.join(missing[:3])}; return a "
            "Task (lth_scale.tasks.task)"
        )
    return task  # type: ignore[no-any-return]


def _parts(protocol: type) -> list[str]:
    methods = (name for name in vars(protocol) if not name.startswith("_"))
    return sorted({*protocol.__annotations__, *methods})


def _function(reference: str) -> Any:
    """The function of a reference; its module may be in the working directory."""
    module, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise BadInput(
            f"--task {reference}: cannot be imported ({first_line(error)}); use "
            "package.module:function of an installed package or of a file in this directory"
        ) from None
