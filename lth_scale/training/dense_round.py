"""Whether a search can reuse the dense round of another: --dense."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, flags_with, same_value
from lth_scale.config.checks import parse_rewind_step
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.config.resolution import launched_precision
from lth_scale.tracking import provenance

log = logging.getLogger("lth_scale")
# Round 0 can be reused if these flags are the same; the others affect later rounds only.
SHARED = {spec.name for spec in fields(Training)} - {*flags_with("cosmetic")} | {
    "lr_span",
    "early_bird",
}
INVALID = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def theta_file(directory: Path, step: int, rewind_step: int) -> Path:
    """Return the file of θᵢ at `step` in the directory of a search."""
    suffix = "" if step == rewind_step else f"-{step}"
    return directory / f"theta{suffix}.safetensors"


def theta_file_of_search(directory: Path, step: int) -> Path:
    """Return the file of θᵢ at `step` in the directory of a search with a complete round 0."""
    arguments = files.read_json(directory / "arguments.json")
    round_0 = files.read_json(directory / "rounds/00/metrics.json")
    rewind_step = int(parse_rewind_step(arguments["rewind_step"], round_0["steps"]))
    return theta_file(directory, step, rewind_step)


def check_dense(args: Arguments, step: int, facts: dict[str, Any]) -> None:
    """Raise BadInput if round 0 of --dense was trained differently or is not kept as needed.

    step: i of θᵢ. facts: those of this search, as `preparation.provenance_of` returns them.
    """
    directory = Path(str(args.dense))
    try:
        arguments = {**files.read_json(directory / "arguments.json")}
        provenance.check_types(arguments)
        theta = theta_file_of_search(directory, step)
    except INVALID as problem:
        raise BadInput(
            f"--dense {directory}: not a search, or damaged; specify the --output_dir of a "
            "finished lth_scale.imp"
        ) from problem
    facts = {"digests": provenance.digests(replace(args, dense=None)), **facts}
    differences = flag_differences(args, arguments, facts["digests"])
    differences += provenance.differences(arguments, facts)
    if differences:
        raise BadInput(
            f"--dense {directory}: trained differently ({'; '.join(differences)}); use the same "
            "flags"
        )
    if not (theta.is_file() and (directory / "rounds/00/model/model.safetensors").is_file()):
        raise BadInput(
            f"--dense {directory}: has not kept its round 0 and θᵢ at step {step}; search there "
            f"with --keep_theta {args.rewind_step}"
        )
    for line in provenance.not_recorded(arguments, facts):
        log.warning("--dense %s: %s", directory, line)


def flag_differences(
    args: Arguments, arguments: dict[str, Any], digests: provenance.Digests
) -> list[str]:
    """Describe the flags that a dense round depends on and that differ from arguments.json.

    Paths are not compared if the digests of their content are.
    """
    flags = redacted(args.as_dict())
    shared = SHARED & arguments.keys() - provenance.flags_with_digests(arguments, digests)
    if "precision" not in arguments:  # the launcher's was not recorded
        shared -= launched_precision().keys()
    return [
        f"--{name} was {arguments[name]}, is {flags[name]}"
        for name in sorted(shared)
        if not same_value(name, arguments[name], flags[name])
    ]
