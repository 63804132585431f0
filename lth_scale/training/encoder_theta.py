"""θᵢ of another search as the encoder's weights: --theta."""

import logging

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.digests import digest
from lth_scale.pruning.ticket import Ticket
from lth_scale.training.networks import Network, Weights
from lth_scale.training.tickets import check_base, check_base_of_ticket

log = logging.getLogger("lth_scale")


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
            f"--theta {path}: cannot be read ({problem}); specify a theta.safetensors"
        ) from problem
    weights = {name: theta[name] for name in shapes if name in theta}
    weights = {name: weight for name, weight in weights.items() if weight.shape == shapes[name]}
    missing = sorted(name for name in shapes.keys() - weights.keys() if "pooler." not in name)
    if missing:
        raise BadInput(
            f"--theta {path}: has no {missing[0]} of this model's shape; use θᵢ of the same encoder"
        )
    return weights


def base_sha256_of(args: Transfer, net: Network) -> str:
    """Return the digest of the base of the weights that are trained: the base of --theta, if any.

    Raises BadInput if the ticket belongs to another base. A --theta that is the θᵢ of the ticket
    needs no further check.
    """
    if not args.theta:
        check_base_of_ticket(net)
        return net.base_sha256
    ticket = Ticket.load(args.ticket) if args.ticket else None
    if ticket and is_theta_of(ticket, args.theta, net):
        if ticket.is_of_other_weights(net.base_sha256) and net.accelerator.is_main_process:
            log.warning(
                "--theta %s: θᵢ of the ticket itself, which replaces the other weights of %r",
                args.theta,
                args.model_name_or_path,
            )
        return ticket.base_sha256
    with safe_open(args.theta, "pt") as file:
        metadata = file.metadata() or {}
    base_sha256 = metadata.get("base_sha256", "")
    check_base(f"--theta {args.theta}", base_sha256, metadata.get("base_model", ""), net)
    check_base_of_ticket(net)
    return base_sha256 or net.base_sha256


def is_theta_of(ticket: Ticket, path: str, net: Network) -> bool:
    """Return True if the prunable weights in a theta.safetensors have the ticket's digest."""
    weights, (name, full_name) = load_file(path), next(iter(net.names.items()))
    prefix = full_name.removesuffix(name)
    if not weights.keys() >= {prefix + name for name in ticket.masks}:
        return False
    return digest({name: weights[prefix + name] for name in ticket.masks}) == ticket.theta_sha256
