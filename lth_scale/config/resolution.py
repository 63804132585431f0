"""Resolving flags: values from the command line, else the preset, else the paper."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer
from lth_scale.config.checks import (
    check_paths,
    check_regexes,
    check_search,
    check_training,
    check_transfer,
)
from lth_scale.config.command import OneLineParser, add_flags
from lth_scale.config.defaults import DEFAULTS, DEMO, EMBEDDED, GLUE_DEFAULTS, QUICK
from lth_scale.config.errors import BadInput
from lth_scale.config.registry import REGISTRIES, parse_with
from lth_scale.config.texts import brief

# Names that are safe to load from: a revision becomes a path in the Hub's cache.
HUB_NAME, _REVISION = r"(\w[\w.-]*/)?\w[\w.-]*", r"(\w[\w./-]*)?"
Values = dict[str, Any]
Kind = TypeVar("Kind", bound=Training)


def parse(argv: Sequence[str], kind: type[Kind] = Arguments) -> Kind:  # type: ignore[assignment]
    """Return the resolved flags of a command line, as the commands do. Raises BadInput."""
    return from_command_line(vars(add_flags(OneLineParser(), kind).parse_args(argv)), kind)


def from_command_line(values: Values, kind: type[Kind]) -> Kind:
    """Resolve the flags of a command line, with the launcher's precision. Raises BadInput."""
    is_given = "bf16" in values or "fp16" in values
    return resolve(values if is_given else values | launched_precision(), kind)


def launched_precision() -> dict[str, bool]:
    """The flag for the precision of `accelerate launch --mixed_precision`, or {}."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return {precision: True} if precision in ("bf16", "fp16") else {}


def resolve(values: Values, kind: type[Kind] = Arguments) -> Kind:  # type: ignore[assignment]
    """Return an instance of `kind` from the given values and the defaults of the rest.

    Defaults are the preset's, else the paper's for the task. Raises BadInput (a ValueError), which
    names the flag, its value and the remedy.
    """
    args = with_defaults(values, kind)
    check_training(args)
    _STEPS[kind][1](args)
    check_paths(args)
    return args


def with_defaults(values: Values, kind: type[Kind]) -> Kind:
    """As `resolve`, but contradictions, ranges and paths are not checked."""
    resolved, given = _task_defaults(values, kind) | {"ignore": ()}, dict(values)
    if ticket := values.get("ticket"):
        if os.path.isdir(ticket):
            given["ticket"] = os.path.join(ticket, "ticket.safetensors")
        header = header_of(given["ticket"])
        resolved["ignore"] = _ignored_by(header)
        if "model_name_or_path" not in values:
            resolved |= _base_model_of(ticket, header)
    resolved |= given
    resolved["ignore"] = tuple(resolved["ignore"])
    _STEPS[kind][0](resolved)
    return kind(**resolved)


def _task_defaults(values: Values, kind: type[Training]) -> Values:
    """The defaults of --task and --preset. Raises BadInput if the preset has no data."""
    task, preset = values["task"], values.get("preset")
    if preset == "demo" and task not in DEMO and "dataset_path" not in values:
        raise BadInput(f"--preset demo: no data for --task {task}; use --task {' or '.join(DEMO)}")
    preset_values = {None: {}, "demo": DEMO.get(task, DEMO["sst2"]), "quick": QUICK}[preset]
    known = {spec.name for spec in fields(kind if kind is Arguments else Training)}
    defaults = DEFAULTS.get(task, GLUE_DEFAULTS) | {
        name: value for name, value in preset_values.items() if name in known
    }
    return defaults | ({"max_steps": -1} if "num_train_epochs" in values else {})


def header_of(ticket: str) -> Mapping[str, str]:
    """The metadata of a ticket's file; {} if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        files.check_regular(Path(ticket))
        with safe_open(ticket, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _base_model_of(ticket: str, header: Mapping[str, str]) -> Values:
    """The flags that load a ticket's base model; {} if its file does not name one."""
    base, revision = header.get("base_model", ""), header.get("base_revision", "")
    if not base:
        return {}
    # A name without a user or a revision is what a push leaves of a local directory.
    on_hub = re.fullmatch(HUB_NAME, base, re.ASCII) and (
        base == EMBEDDED or "/" in base or revision
    )
    is_model = on_hub or os.path.isfile(os.path.join(base, "config.json"))
    if not is_model or not re.fullmatch(_REVISION, revision, re.ASCII) or ".." in revision:
        name = f"{base}@{revision}" if revision else base
        raise BadInput(
            f"--ticket {ticket}: its base model {brief(name)!r} is neither a name on the Hub nor a "
            "local directory; specify --model_name_or_path, and --model_revision if needed"
        )
    return {"model_name_or_path": base, **({"model_revision": revision} if revision else {})}


def _ignored_by(header: Mapping[str, str]) -> list[str]:
    """--ignore of the search that found a ticket; [] if its file does not have it."""
    try:
        patterns = [str(pattern) for pattern in json.loads(header["arguments"])["ignore"] or ()]
        check_regexes(patterns)
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # reading the ticket raises BadInput if it is damaged
    return patterns


def _fill_in_search(values: Values) -> None:
    values.setdefault("output_dir", os.path.join("runs", f"{values['task']}-{_model_name(values)}"))
    values.setdefault("lr_span", "all_rounds" if values.get("rewind") == "none" else "round")
    pattern = parse_with(REGISTRIES["pattern"], values.get("pattern", "unstructured"))
    values.setdefault("target_sparsity", pattern.default_sparsity)


def _fill_in_transfer(values: Values) -> None:
    values["seeds"] = tuple(dict.fromkeys(values.get("seeds") or (values.get("seed", 42),)))
    values["seed"] = values["seeds"][0]
    source, control = source_name(values.get("ticket")), values.get("control", "none")
    names = ["transfer", values["task"], _model_name(values), source]
    names += [control] if control != "none" else []
    values.setdefault("output_dir", os.path.join("runs", "-".join(names)))


def source_name(ticket: str | None) -> str:
    """A short name of a ticket's source: `dense`, or its run and round."""
    if not ticket:
        return "dense"
    parts = Path(ticket).resolve().parent.parts
    return "-".join(parts[-3::2] if "rounds" in parts[-2:] else parts[-1:])


def _model_name(values: Values) -> str:
    model = values["model_name_or_path"]
    name = "demo" if model == EMBEDDED else Path(model).name
    return f"{name}-quick" if values.get("preset") == "quick" else name


# What completes and what checks the flags of each command
_STEPS: dict[type[Training], tuple[Callable[[Values], None], Callable[[Any], None]]] = {
    Arguments: (_fill_in_search, check_search),
    Transfer: (_fill_in_transfer, check_transfer),
}
