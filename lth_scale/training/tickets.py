"""The ticket that a run starts from, and whether it belongs to the base model."""

import logging

import torch
from torch import Tensor

from lth_scale.config.arguments import Arguments, flags_with
from lth_scale.config.checks import check_rounds
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import absolute_model
from lth_scale.config.redaction import redacted
from lth_scale.pruning import prunable_set, registries
from lth_scale.pruning.ticket import Ticket
from lth_scale.training.networks import Network

log = logging.getLogger("lth_scale")
PRUNED_BY = {"pattern": "unstructured", "scope": "global"}  # and the defaults


def initial_ticket(net: Network) -> Ticket:
    """Return the ticket to start from: every weight kept, or the mask of --ticket.

    Raises BadInput if --ticket does not fit the network.
    """
    args = net.args
    masks = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    threshold, pruned_by = 0.0, PRUNED_BY
    if args.ticket:
        try:
            ticket = Ticket.load(args.ticket)
            masks |= masks_to_apply(ticket, net)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from problem
        threshold = ticket.threshold
        pruned_by = {name: ticket.arguments.get(name) or PRUNED_BY[name] for name in PRUNED_BY}
    flags = redacted(
        {k: value for k, value in args.as_saved().items() if k not in flags_with("cosmetic")}
    )
    if args.max_steps == 0:  # without training a ticket is the same in every precision
        flags |= {"bf16": False, "fp16": False}
    unset = {name: value for name, value in pruned_by.items() if flags.get(name) is None}
    return Ticket(
        masks=masks,
        **base_metadata(net),
        base_revision=args.model_revision or net.task.revision,
        task=args.task,
        threshold=threshold,
        arguments=flags | unset,
    )


def base_metadata(net: Network) -> dict[str, str]:
    """Return the metadata that name the base model in tickets and files of θᵢ."""
    base = absolute_model(net.args.model_name_or_path)
    return {"base_model": redacted(base), "base_sha256": net.base_sha256}


def masks_to_apply(ticket: Ticket, net: Network) -> dict[str, Tensor]:
    """Return a ticket's masks of the prunable set. Raises BadInput if it prunes other matrices."""
    masks = ticket.masks_for(net.engine.meta_model)
    for name in masks.keys() - net.targets.keys():
        if not (name.startswith(prunable_set.POOLER) or masks[name].all()):
            raise BadInput(
                f"prunes {name}, which --ignore {' '.join(net.args.ignore or ())} leaves dense; "
                "leave it out"
            )
    return {name: mask for name, mask in masks.items() if name in net.targets}


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
    check_base_of_ticket(net)


def check_pattern(pattern: str, ticket: Ticket, net: Network) -> None:
    """Raise BadInput, naming the matrix, if a pattern does not divide one of a ticket's."""
    shapes = {name: mask.shape for name, mask in ticket.masks.items()}
    registries.check_pattern(pattern, shapes, prunable_set.transposed(net.engine.meta_model))


def check_base_of_ticket(net: Network) -> None:
    """Raise BadInput if --ticket was found in other weights than the base model's."""
    if path := net.args.ticket:
        ticket = Ticket.load(path)
        check_base(f"--ticket {path}", ticket.base_sha256, ticket.base_model, net)


def check_base(name: str, base_sha256: str, base: str, net: Network) -> None:
    """Raise BadInput if a file comes from other weights than the base model's.

    name: of the file, as in `--ticket FILE`. base, base_sha256: what it comes from; "" if unknown.
    Logs a warning instead under --allow_other_weights and if it is unknown.
    """
    expected, model = net.base_sha256, net.args.model_name_or_path
    if base_sha256 == expected:
        return
    if base_sha256:
        problem = (
            f"comes from other weights, base_sha256 {base_sha256[:12]}… of {base!r}, and {model!r} "
            f"has {expected[:12]}…"
        )
        if not net.args.allow_other_weights:
            raise BadInput(
                f"{name}: {problem}; use that model as --model_name_or_path, or "
                "--allow_other_weights"
            )
    else:
        problem = (
            f"has no base_sha256, so whether it comes from the weights of {model!r} is not checked"
        )
    if net.accelerator.is_main_process:
        log.warning("%s: %s", name, problem)
