"""The curves of score against sparsity that runs belong to."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from lth_scale.config.arguments import Arguments, Training, flags_with
from lth_scale.tracking.mlflow.tickets import metadata

METHOD = ("scope", "pattern", "score", "rewind", "rewind_step", "distill", "early_bird")


def curve_name(args: Training, control: str) -> str:
    """Return the curve of a run: the method, the task, the model and a digest of the flags.

    Runs of one curve differ in nothing but the seed and the sparsity.
    """
    shared = {spec.name for spec in fields(Training)} - {*flags_with("cosmetic"), "seed", "ticket"}
    shared |= {"theta", "prune_rate", "schedule", "lr_span", *METHOD}
    flags = {name: value for name, value in args.as_dict().items() if name in shared}
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:4]
    model = Path(args.model_name_or_path).name
    return f"{method_name(args, control)} · {args.task} · {model} {digest}"


def method_name(args: Training, control: str) -> str:
    """Return the control; else `IMP` with the flags that are not defaults, or `dense`."""
    if control != "none":
        return control
    if isinstance(args, Arguments):
        flags = [
            f"{spec.name}={getattr(args, spec.name)}"
            for spec in fields(Arguments)
            if spec.name in METHOD and getattr(args, spec.name) != spec.default
        ]
        return " ".join(["IMP", *flags])
    if not args.ticket:
        return "dense"
    task = metadata(Path(args.ticket))["task"]
    return "IMP" if task == args.task else f"IMP of {task}"
