"""What a run takes from an earlier search, --ticket, --theta and --dense, and whether it fits."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with, same_value
from lth_scale.config.checks import MOST_ROUNDS, check_rounds, parse_rewind_step
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.flags import absolute_if_local
from lth_scale.config.redaction import redacted
from lth_scale.config.resolution import launched_precision
from lth_scale.distributed.pieces import base_model
from lth_scale.pruning import prunable_set, registries
from lth_scale.pruning.prunable_set import digest
from lth_scale.pruning.registries import CONTROLS, Budget
from lth_scale.pruning.ticket import Ticket
from lth_scale.tasks.loading import load_model
from lth_scale.tracking import provenance
from lth_scale.training.networks import Network, Weights

PRUNED_BY = {"pattern": "unstructured", "scope": "global"}  # and the defaults
# Round 0 can be reused if these flags are the same; the others affect later rounds only.
SHARED = {"lr_span", "early_bird", *(spec.name for spec in fields(Training))}
SHARED -= {*flags_with("cosmetic")}


def initial_ticket(net: Network) -> Ticket:
    """Return the ticket to start from: every weight kept, or the mask of --ticket.

    Raises BadInput if --ticket does not fit the network.
    """
    args = net.args
    masks = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    threshold, pruned_by = 0.0, PRUNED_BY
    rounds: int | None = 0
    if args.ticket:
        try:
            ticket = Ticket.load(args.ticket)
            masks |= _masks_to_apply(ticket, net)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from problem
        threshold, rounds = ticket.threshold, ticket.rounds
        pruned_by = {name: ticket.arguments.get(name) or PRUNED_BY[name] for name in PRUNED_BY}
    cosmetic = flags_with("cosmetic")
    flags = redacted({k: value for k, value in args.as_saved().items() if k not in cosmetic})
    if args.max_steps == 0:  # without training a ticket is the same in every precision
        flags |= {"bf16": False, "fp16": False}
    return Ticket(
        masks,
        base_revision=args.model_revision or net.task.revision,
        task=args.task,
        threshold=threshold,
        arguments=flags
        | {k: value for k, value in pruned_by.items() if flags.get(k) is None}
        | {"rounds": rounds},
        **base_metadata(net),
    )


def _masks_to_apply(ticket: Ticket, net: Network) -> dict[str, Tensor]:
    """Return a ticket's masks of the prunable set. Raises BadInput if it prunes other matrices."""
    masks = ticket.masks_for(net.engine.meta_model)
    for name in masks.keys() - net.targets.keys():
        if not (name.startswith(prunable_set.POOLER) or masks[name].all()):
            raise BadInput(
                f"prunes {name}, which --ignore {' '.join(net.args.ignore or ())} leaves dense; "
                "omit it"
            )
    return {name: mask for name, mask in masks.items() if name in net.targets}


def base_metadata(net: Network) -> dict[str, str]:
    """Return the metadata that name the base model in tickets and files of θᵢ."""
    base = absolute_if_local(net.args.model_name_or_path)
    return {"base_model": redacted(base), "base_sha256": net.base_sha256}


def check_ticket(ticket: Ticket, net: Network, args: Arguments) -> None:
    """Raise BadInput if a search cannot start from a ticket: pattern, rounds or base model."""
    check_pattern(args.pattern, ticket, net)
    found_under = Ticket.load(args.ticket).arguments.get("pattern") if args.ticket else args.pattern
    if args.pattern not in ("unstructured", found_under):
        raise BadInput(
            f"--pattern {args.pattern}: the ticket of --ticket was found with another pattern; "
            "omit one of them"
        )
    check_rounds(args, ticket.sparsity)
    _check_base("ticket", args.ticket, net)


def budget_of(args: Arguments | Transfer, ticket: Ticket) -> Budget | None:
    """Return the budget of --control beside a ticket; None if it has none.

    Raises BadInput if the ticket does not say how many rounds of search led to it.
    """
    budget = CONTROLS[args.control].budget
    if budget is None:
        return None
    if ticket.rounds is None or ticket.rounds > MOST_ROUNDS:
        raise BadInput(
            f"--control {args.control}: the ticket of --ticket {args.ticket} does not say how many "
            "rounds of search led to it; use one that this version of lth_scale.imp has found"
        )
    return budget(ticket.rounds)


def theta_zero(net: Network, seed: int) -> Weights:
    """Load θ₀ with the head that a seed draws."""
    args, model = replace(net.args, seed=seed), net.engine.meta_model
    loaded = load_model(args, type(model), net.task.tokenizer, config=model.config).model
    return {name: weight.detach() for name, weight in loaded.named_parameters()}


def check_pattern(pattern: str, ticket: Ticket, net: Network) -> None:
    """Raise BadInput, naming the matrix, if a pattern does not divide one of a ticket's."""
    shapes = {name: mask.shape for name, mask in ticket.masks.items()}
    registries.check_pattern(pattern, shapes, prunable_set.transposed(net.engine.meta_model))


def _check_base(flag: str, path: str | None, net: Network) -> str:
    """Return the base_sha256 of the file of --ticket or --theta, or "" if it has none.

    Raises BadInput if it comes from other weights than the base model's; logs a warning instead
    under --allow_other_weights, and if it has no base_sha256.
    """
    if not path:
        return ""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    base_sha256, base = metadata.get("base_sha256", ""), metadata.get("base_model", "")
    model, problem = net.args.model_name_or_path, ""
    if not base_sha256:
        problem = (
            f"has no base_sha256, so whether it comes from the weights of {model!r} is not checked"
        )
    elif base_sha256 != net.base_sha256:
        problem = (
            f"comes from other weights, base_sha256 {base_sha256[:12]}… of {base!r}, and {model!r} "
            f"has {net.base_sha256[:12]}…"
        )
        if not net.args.allow_other_weights:
            raise BadInput(
                f"--{flag} {path}: {problem}; use that model as --model_name_or_path, or "
                "--allow_other_weights"
            )
    if problem:
        warn("--%s %s: %s", flag, path, problem)
    return base_sha256


def load_encoder(path: str, net: Network) -> Weights:
    """Load the encoder's weights from a search's theta.safetensors, which may have another head.

    Raises BadInput if a weight is missing or has another shape.
    """
    model = net.engine.meta_model
    encoder = {id(weight) for weight in base_model(model).parameters()}
    shapes = {
        name: weight.shape for name, weight in model.named_parameters() if id(weight) in encoder
    }
    try:
        theta = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise BadInput(
            f"--theta {path}: cannot be read ({problem}); use a theta.safetensors"
        ) from problem
    weights = {
        name: theta[name]
        for name, shape in shapes.items()
        if name in theta and theta[name].shape == shape
    }
    missing = sorted(name for name in shapes.keys() - weights.keys() if "pooler." not in name)
    if missing:
        raise BadInput(
            f"--theta {path}: has no {missing[0]} of this model's shape; use θᵢ of the same encoder"
        )
    return weights


def base_sha256_of(args: Transfer, net: Network) -> str:
    """Return the digest of the base of the weights to train: that of --theta, if any.

    Raises BadInput if the ticket belongs to another base. A --theta that is the θᵢ of the ticket
    needs no further check.
    """
    ticket = Ticket.load(args.ticket) if args.ticket else None
    if args.theta and ticket and _is_theta_of(ticket, args.theta, net):
        if ticket.is_of_other_weights(net.base_sha256):
            warn(
                "--theta %s: θᵢ of the ticket itself, which replaces the other weights of %r",
                args.theta,
                args.model_name_or_path,
            )
        return ticket.base_sha256
    base_sha256 = _check_base("theta", args.theta, net)
    _check_base("ticket", args.ticket, net)
    return base_sha256 or net.base_sha256


def _is_theta_of(ticket: Ticket, path: str, net: Network) -> bool:
    """Return True if the prunable weights in a theta.safetensors have the ticket's digest."""
    weights, (name, full_name) = load_file(path), next(iter(net.names.items()))
    prefix = full_name.removesuffix(name)
    if not weights.keys() >= {prefix + name for name in ticket.masks}:
        return False
    return digest({name: weights[prefix + name] for name in ticket.masks}) == ticket.theta_sha256


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(
            f"--dense {directory}: not a search, or damaged; use the --output_dir of a "
            "finished lth_scale.imp"
        ) from problem
    facts = {"digests": provenance.digests(replace(args, dense=None)), **facts}
    # Paths are not compared if the digests of their content are.
    shared = SHARED & arguments.keys() - provenance.flags_with_digests(arguments, facts["digests"])
    if "precision" not in arguments:  # the launcher's was not recorded
        shared -= launched_precision().keys()
    flags = redacted(args.as_dict())
    differences = [
        f"--{name} was {arguments[name]}, is {flags[name]}"
        for name in sorted(shared)
        if not same_value(name, arguments[name], flags[name])
    ]
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
        warn("--dense %s: %s", directory, line)
