"""Controls: a subnetwork of a ticket's sparsity without its finding. One function each."""

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lth_scale.config.errors import BadInput
from lth_scale.pruning import structured, threshold
from lth_scale.pruning.orientation import oriented
from lth_scale.pruning.prunable_set import transposed
from lth_scale.pruning.registries import parse_pattern
from lth_scale.pruning.subnetwork import Subnetwork, Tensors


def pruned(masks: Iterable[Tensor]) -> int:
    """How many weights the masks prune."""
    return sum(mask.numel() - int(mask.sum()) for mask in masks)


def none(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """The ticket itself."""
    return subnetwork


def random_mask(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """m_RP: as many weights pruned uniformly at random, over all matrices together.

    The official code magnitude-prunes a freshly initialised BERT, which amounts to the same
    (oneshot.py --weight rand). Masks of the same seed are nested.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = _random(subnetwork.masks, generator)
    return replace(subnetwork, masks=masks)


def random_layerwise(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """As many weights of each matrix pruned uniformly at random: the ticket's layer sparsities."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: _random({name: mask}, generator)[name] for name, mask in subnetwork.masks.items()
    }
    return replace(subnetwork, masks=masks)


def _random(masks: Tensors, generator: torch.Generator) -> Tensors:
    """Masks that prune as many weights as `masks` in all, uniformly at random."""
    noise = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    drawn = _dense(masks)
    threshold.smallest(noise, drawn, pruned(masks.values()))
    return drawn


def _dense(masks: Tensors) -> Tensors:
    return {name: torch.ones_like(mask) for name, mask in masks.items()}


def reinit(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """θ₀′: the whole network, embeddings and head too, from its own initializer (glue_trans.py)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU only
        model = type(subnetwork.model)(subnetwork.model.config)
    weights = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return replace(subnetwork, weights=weights)


def shuffle_layers(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """θ₀″ of the official code: one permutation of the layers, for all matrices (pertub_weight.py).

    It is never the identity. Pooler, biases, LayerNorm and embeddings stay in place, and so does a
    matrix whose counterparts in other layers have other shapes. Raises BadInput if no two layers
    are alike.
    """
    groups = _counterparts(subnetwork.masks)
    if max(map(len, groups), default=0) < 2:
        raise BadInput(
            "--control shuffle_layers: no two layers of the model are alike; use shuffle_within"
        )
    weights = dict(subnetwork.weights)
    for names in groups:
        # All groups of one depth get the same permutation, so that layers move as a whole.
        for name, source in zip(names, permutation(len(names), seed), strict=True):
            weights[subnetwork.names[name]] = subnetwork.matrix(names[source])
    return replace(subnetwork, weights=weights)


def _counterparts(masks: Tensors) -> list[list[str]]:
    """Groups of matrices with the same role and shape, by their names, in the order of layers."""
    groups: dict[tuple[str, ...], dict[int, str]] = {}
    for name, mask in masks.items():
        match = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        if match:
            role = (match[1], match[3], str(mask.shape))
            groups.setdefault(role, {})[int(match[2])] = name
    return [[layers[i] for i in sorted(layers)] for layers in groups.values()]


def permutation(count: int, seed: int) -> list[int]:
    """A random permutation of `count` indices, never the identity unless there is only one."""
    generator, order = torch.Generator().manual_seed(seed), list(range(count))
    while count > 1 and order == sorted(order):
        order = torch.randperm(count, generator=generator).tolist()
    return order


def shuffle_within(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """θ₀″ of the paper's text: the weights of each matrix permuted among themselves."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(subnetwork.weights)
    for name in subnetwork.masks:
        matrix = subnetwork.matrix(name)
        order = torch.randperm(matrix.numel(), generator=generator)
        weights[subnetwork.names[name]] = matrix.reshape(-1)[order].view(matrix.shape)
    return replace(subnetwork, weights=weights)


def one_shot(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """One-shot magnitude pruning of θ₀ to the ticket's number of pruned weights (oneshot.py).

    Under the ticket's pattern and scope.
    """
    masks = _dense(subnetwork.masks)
    size = sum(mask.numel() for mask in masks.values())
    structured.prune(
        values={name: subnetwork.matrix(name) for name in masks},
        keep=masks,
        sparsity=pruned(subnetwork.masks.values()) / size,
        scope=subnetwork.scope,
        pattern=parse_pattern(subnetwork.pattern),
        orientation=oriented(transposed(subnetwork.model)),
    )
    return replace(subnetwork, masks=masks)
