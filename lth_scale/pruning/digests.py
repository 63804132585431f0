"""Digests of weights: how a ticket recognises the network that it was found in."""

import hashlib
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.prunable_set import POOLER


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and little-endian fp32 bytes of each weight, in the order given."""
    sha = hashlib.sha256()
    for name, weight in weights.items():
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        numbers = weight.detach().cpu().float().contiguous().numpy()
        sha.update(numbers.astype("<f4", copy=False).data)
    return sha.hexdigest()


def base_digest(model: nn.Module, fresh: Collection[str] = ()) -> str:
    """`base_sha256`: the digest of the encoder's parameters, sorted by name in the base model.

    Tied parameters count once; the pooler and the parameters in `fresh` (names in `model` of what
    was not in the checkpoint) are left out. So it depends on the weights of the checkpoint alone:
    not on its file format, its dtype (bf16 and fp16 are widened to fp32) or the head.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    weights = {
        name: weight
        for name, weight in sorted(base_model(model).named_parameters())
        if not name.startswith(POOLER) and names[weight] not in fresh
    }
    return digest(weights)
