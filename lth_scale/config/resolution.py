"""From a command line to resolved arguments: what is given, else the preset, else the paper."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training
from lth_scale.config.checks import check, check_regexes
from lth_scale.config.defaults import DEFAULTS, DEMO, EMBEDDED, QUICK
from lth_scale.config.errors import BadInput
from lth_scale.config.parsers import build_parser
from lth_scale.config.registry import REGISTRIES, parse_with
from lth_scale.config.texts import brief

# What a ticket may name to be loaded; a revision becomes a path in the Hub's cache.
HUB_NAME, REVISION = r"(\w[\w.-]*/)?\w[\w.-]*", r"(\w[\w./-]*)?"


def parse(argv: Sequence[str] | None, prog: str, description: str, kind: type = Arguments) -> Any:
    """A `kind` from a command line: what is given, else the preset's, else the paper's.

    Raises BadInput (a ValueError) that names the flag, its value and the remedy.
    """
    given = vars(build_parser(prog, description, kind).parse_args(argv))
    if not {"bf16", "fp16"} & given.keys():
        given |= launched_precision()
    return resolve(given, kind)


def launched_precision() -> dict[str, bool]:
    """The launcher's precision (`accelerate launch --mixed_precision bf16`) as the flag of the same meaning, or {}."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return {precision: True} if precision in ("bf16", "fp16") else {}


def resolve(given: dict[str, Any], kind: type = Arguments) -> Any:
    """Fill in what was not given and check the whole. Raises BadInput."""
    task, known = (
        given["task"],
        {spec.name for spec in fields(kind if kind is Arguments else Training)},
    )
    if given.get("preset") == "demo" and task not in DEMO and "dataset_path" not in given:
        raise BadInput(
            f"--preset demo: has no data for --task {task}; take --task {' or '.join(DEMO)}"
        )
    preset = {None: {}, "demo": DEMO.get(task, DEMO["sst2"]), "quick": QUICK}[given.get("preset")]
    values = DEFAULTS[task] | {name: value for name, value in preset.items() if name in known}
    if "num_train_epochs" in given:
        values["max_steps"] = -1
    if given.get("ticket"):
        values |= origin_of(given)
    values |= {"ignore": ignored_by(given.get("ticket")), **given}
    values["ignore"] = tuple(values["ignore"])
    if Path(values.get("ticket") or "").is_dir() and values.get("ticket"):
        values["ticket"] = os.path.join(values["ticket"], "ticket.safetensors")
    finish: Callable[[dict[str, Any]], None] = (
        fill_in_search if kind is Arguments else fill_in_transfer
    )
    finish(values)
    args = kind(**values)
    check(args)
    return args


def origin_of(given: dict[str, Any]) -> dict[str, Any]:
    """The base model that a ticket was found in, as the flags that load it; {} where the file cannot tell."""
    metadata = header_of(given["ticket"])
    base, revision = metadata.get("base_model", ""), metadata.get("base_revision", "")
    if not base or "model_name_or_path" in given:
        return {}
    # A name without a user or a revision is what a push leaves of a local directory.
    on_hub = re.fullmatch(HUB_NAME, base, re.ASCII) and (
        base == EMBEDDED or "/" in base or revision
    )
    is_model = on_hub or os.path.isfile(os.path.join(base, "config.json"))
    if not is_model or not re.fullmatch(REVISION, revision, re.ASCII) or ".." in revision:
        name = f"{base}@{revision}" if revision else base
        raise BadInput(
            f"--ticket {given['ticket']}: its base model {brief(name)!r} is neither a name on the Hub "
            "nor a directory here; give --model_name_or_path, and --model_revision where it needs one"
        )
    return {"model_name_or_path": base, **({"model_revision": revision} if revision else {})}


def ignored_by(ticket: str | None) -> list[str]:
    """--ignore of the search that found a ticket; [] where there is none, or the file cannot tell."""
    try:
        found = (
            [*map(str, json.loads(header_of(ticket)["arguments"])["ignore"] or ())]
            if ticket
            else []
        )
        check_regexes(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # a damaged ticket is refused when it is read
    return found


def header_of(ticket: str) -> dict[str, str]:
    """The metadata of a ticket's file, or {} where it has none: it is refused when it is read."""
    from safetensors import SafetensorError, safe_open

    try:
        path = Path(ticket)
        path = path / "ticket.safetensors" if path.is_dir() else path
        files.check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def fill_in_search(values: dict[str, Any]) -> None:
    """Defaults that follow from other flags of a search."""
    values.setdefault("output_dir", os.path.join("runs", f"{values['task']}-{_stem(values)}"))
    values.setdefault("lr_span", "all_rounds" if values.get("rewind") == "none" else "round")
    pattern = parse_with(REGISTRIES["pattern"], values.get("pattern", "unstructured"))
    values.setdefault("target_sparsity", pattern.default_sparsity)


def fill_in_transfer(values: dict[str, Any]) -> None:
    """Defaults that follow from other flags of a transfer."""
    values["seeds"] = tuple(dict.fromkeys(values.get("seeds") or (values.get("seed", 42),)))
    values["seed"] = values["seeds"][0]
    source, control = source_name(values.get("ticket")), values.get("control", "none")
    what = source if control == "none" else f"{source}-{control}"
    values.setdefault(
        "output_dir", os.path.join("runs", f"transfer-{values['task']}-{_stem(values)}-{what}")
    )


def source_name(ticket: str | None) -> str:
    """A short name for where a ticket comes from: `dense`, the run's directory, or that and the round."""
    rooms = Path(ticket or "").resolve().parent.parts
    return (
        "dense" if not ticket else "-".join(rooms[-3::2] if "rounds" in rooms[-2:] else rooms[-1:])
    )


def _stem(values: dict[str, Any]) -> str:
    stem = (
        "demo"
        if values["model_name_or_path"] == EMBEDDED
        else Path(values["model_name_or_path"]).name
    )
    return f"{stem}-quick" if values.get("preset") == "quick" else stem
