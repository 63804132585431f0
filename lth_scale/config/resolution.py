"""Resolving flags: values from the command line, else the preset, else the paper."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer
from lth_scale.config.checks import check_regexes, check_search, check_training, check_transfer
from lth_scale.config.defaults import DEFAULTS, DEMO, EMBEDDED, GLUE_DEFAULTS, QUICK
from lth_scale.config.errors import BadInput
from lth_scale.config.parsers import OneLineParser, add_flags
from lth_scale.config.path_checks import check_paths
from lth_scale.config.registry import REGISTRIES, parse_with
from lth_scale.config.texts import brief

# Names that are safe to load from: a revision becomes a path in the Hub's cache.
HUB_NAME, REVISION = r"(\w[\w.-]*/)?\w[\w.-]*", r"(\w[\w./-]*)?"
TICKET_FILE = "ticket.safetensors"
Values = dict[str, Any]
Kind = TypeVar("Kind", bound=Training)


def parse(argv: Sequence[str], kind: type[Kind] = Arguments) -> Kind:  # type: ignore[assignment]
    """Return the resolved flags of a command line, as the commands do. Raises BadInput."""
    return from_command_line(vars(add_flags(OneLineParser(), kind).parse_args(argv)), kind)


def from_command_line(values: Values, kind: type[Kind]) -> Kind:
    """Resolve the flags of a command line, with the launcher's precision. Raises BadInput."""
    return resolve(
        values if {"bf16", "fp16"} & values.keys() else values | launched_precision(), kind
    )


def launched_precision() -> dict[str, bool]:
    """Return the flag for the precision of `accelerate launch --mixed_precision`, or {}."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return {precision: True} if precision in ("bf16", "fp16") else {}


def resolve(values: Values, kind: type[Kind] = Arguments) -> Kind:  # type: ignore[assignment]
    """Return an instance of `kind` from the given values and the defaults of the rest.

    Defaults are the preset's, else the paper's for the task. Raises BadInput (a ValueError), which
    names the flag, its value and the remedy.
    """
    ticket = values.get("ticket")
    resolved = task_defaults(values, kind)
    resolved |= base_model_of(ticket) if ticket and "model_name_or_path" not in values else {}
    resolved |= {"ignore": ignored_by(ticket), **values}
    resolved["ignore"] = tuple(resolved["ignore"])
    if ticket and os.path.isdir(ticket):
        resolved["ticket"] = os.path.join(ticket, TICKET_FILE)
    fill_in, check = STEPS[kind]
    fill_in(resolved)
    args = kind(**resolved)
    check_training(args)
    check(args)
    check_paths(args)
    return args


def task_defaults(values: Values, kind: type[Training]) -> Values:
    """Return the defaults of --task and --preset. Raises BadInput if the preset has no data."""
    task, preset = values["task"], values.get("preset")
    if preset == "demo" and task not in DEMO and "dataset_path" not in values:
        raise BadInput(f"--preset demo: no data for --task {task}; use --task {' or '.join(DEMO)}")
    preset_values = {None: {}, "demo": DEMO.get(task, DEMO["sst2"]), "quick": QUICK}[preset]
    known = {spec.name for spec in fields(kind if kind is Arguments else Training)}
    defaults = DEFAULTS.get(task, GLUE_DEFAULTS) | {
        name: value for name, value in preset_values.items() if name in known
    }
    return defaults | ({"max_steps": -1} if "num_train_epochs" in values else {})


def base_model_of(ticket: str) -> Values:
    """Return the flags that load a ticket's base model; {} if its file does not name one."""
    metadata = header_of(ticket)
    base, revision = metadata.get("base_model", ""), metadata.get("base_revision", "")
    if not base:
        return {}
    # A name without a user or a revision is what a push leaves of a local directory.
    on_hub = re.fullmatch(HUB_NAME, base, re.ASCII) and (
        base == EMBEDDED or "/" in base or revision
    )
    is_model = on_hub or os.path.isfile(os.path.join(base, "config.json"))
    if not is_model or not re.fullmatch(REVISION, revision, re.ASCII) or ".." in revision:
        name = f"{base}@{revision}" if revision else base
        raise BadInput(
            f"--ticket {ticket}: its base model {brief(name)!r} is neither a name on the Hub nor a "
            "local directory; specify --model_name_or_path, and --model_revision if needed"
        )
    return {"model_name_or_path": base, **({"model_revision": revision} if revision else {})}


def ignored_by(ticket: str | None) -> list[str]:
    """Return --ignore of the search that found a ticket; [] if the file does not tell."""
    try:
        patterns = json.loads(header_of(ticket)["arguments"])["ignore"] if ticket else ()
        patterns = [str(pattern) for pattern in patterns or ()]
        check_regexes(patterns)
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # a damaged ticket is refused when it is read
    return patterns


def header_of(ticket: str) -> dict[str, str]:
    """Return the metadata of a ticket's file; {} if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        path = Path(ticket)
        path = path / TICKET_FILE if path.is_dir() else path
        files.check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def fill_in_search(values: Values) -> None:
    """Set the defaults that follow from other flags of a search."""
    values.setdefault("output_dir", os.path.join("runs", f"{values['task']}-{model_name(values)}"))
    values.setdefault("lr_span", "all_rounds" if values.get("rewind") == "none" else "round")
    pattern = parse_with(REGISTRIES["pattern"], values.get("pattern", "unstructured"))
    values.setdefault("target_sparsity", pattern.default_sparsity)


def fill_in_transfer(values: Values) -> None:
    """Set the defaults that follow from other flags of a transfer."""
    values["seeds"] = tuple(dict.fromkeys(values.get("seeds") or (values.get("seed", 42),)))
    values["seed"] = values["seeds"][0]
    source, control = source_name(values.get("ticket")), values.get("control", "none")
    names = ["transfer", values["task"], model_name(values), source]
    names += [control] if control != "none" else []
    values.setdefault("output_dir", os.path.join("runs", "-".join(names)))


def source_name(ticket: str | None) -> str:
    """Return a short name of a ticket's source: `dense`, or its run and round."""
    if not ticket:
        return "dense"
    parts = Path(ticket).resolve().parent.parts
    return "-".join(parts[-3::2] if "rounds" in parts[-2:] else parts[-1:])


def model_name(values: Values) -> str:
    """Return a short name of the model, for the name of a directory."""
    model = values["model_name_or_path"]
    name = "demo" if model == EMBEDDED else Path(model).name
    return f"{name}-quick" if values.get("preset") == "quick" else name


# What completes and what checks the flags of each command.
STEPS: dict[type[Training], tuple[Callable[[Values], None], Callable[[Any], None]]] = {
    Arguments: (fill_in_search, check_search),
    Transfer: (fill_in_transfer, check_transfer),
}
