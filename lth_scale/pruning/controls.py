"""Controls: a subnetwork of a ticket's sparsity without its finding. One function each."""

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lth_scale.config.errors import BadInput
from lth_scale.pruning import threshold
from lth_scale.pruning.patterns import Orientation, PruningStep
from lth_scale.pruning.prunable_set import transposed
from lth_scale.pruning.registries import Subnetwork, parse_pattern

Masks = dict[str, Tensor]


def none(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """The ticket itself."""
    return subnetwork


def random_mask(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """m_RP: the same number of weights pruned uniformly at random over all matrices.

    The official code magnitude-prunes a freshly initialised BERT instead (oneshot.py --weight
    rand). That is the same only where all matrices are initialised at one scale, as BERT's are;
    elsewhere it prunes more of the matrices that start smaller. Masks of the same seed are nested.
    """
    generator = torch.Generator().manual_seed(seed)
    return replace(subnetwork, masks=_random(subnetwork.masks, generator))


def random_layerwise(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """Uniformly random masks with the ticket's number of pruned weights in each matrix."""
    generator, masks = torch.Generator().manual_seed(seed), Masks()
    for name, mask in subnetwork.masks.items():
        masks |= _random({name: mask}, generator)
    return replace(subnetwork, masks=masks)


def _random(masks: Masks, generator: torch.Generator) -> Masks:
    """Uniformly random masks with the total number of pruned weights of `masks`."""
    noise = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    drawn = _dense(masks)
    threshold.smallest(noise, drawn, pruned(masks.values()))
    return drawn


def dense(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """The dense network, of which nothing is pruned, to be trained with a larger budget."""
    return replace(subnetwork, masks=_dense(subnetwork.masks))


def _dense(masks: Masks) -> Masks:
    return {name: torch.ones_like(mask) for name, mask in masks.items()}


def pruned(masks: Iterable[Tensor]) -> int:
    """How many weights the masks prune."""
    return sum(mask.numel() - int(mask.sum()) for mask in masks)


def reinit(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """θ₀′: the whole network, embeddings and head too, from its own initializer (glue_trans.py)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU only
        model = type(subnetwork.model)(subnetwork.model.config)
    weights = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return replace(subnetwork, weights=weights)


def shuffle_layers(subnetwork: Subnetwork, seed: int) -> Subnetwork:
    """θ₀″ of the official code: one permutation of the layers, for all matrices (pertub_weight.py).

    It is never the identity. Pooler, biases, LayerNorm and embeddings stay in place, and so do
    matrices whose shape no other layer has. Raises BadInput if no two layers are alike.
    """
    groups = _counterparts(subnetwork.masks)
    if max(map(len, groups), default=0) < 2:
        raise BadInput(
            "--control shuffle_layers: no two layers of the model are alike; use shuffle_within"
        )
    weights = dict(subnetwork.weights)
    for names in groups:
        # groups of the same depth get the same permutation, so that layers move as a whole
        for name, source in zip(names, _permute(len(names), seed), strict=True):
            weights[subnetwork.names[name]] = subnetwork.matrix(names[source])
    return replace(subnetwork, weights=weights)


def _counterparts(masks: Masks) -> list[list[str]]:
    """The names of matrices of the same role and shape, in the order of layers."""
    groups: dict[tuple[str, ...], dict[int, str]] = {}
    for name, mask in masks.items():
        if match := re.fullmatch(r"(.*?\.)(\d+)(\..*)", name):
            role = (match[1], match[3], str(mask.shape))
            groups.setdefault(role, {})[int(match[2])] = name
    return [[layers[i] for i in sorted(layers)] for layers in groups.values()]


def _permute(count: int, seed: int) -> list[int]:
    """A random permutation, never the identity unless `count` is 1."""
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
    """One-shot magnitude pruning of θ₀ to the ticket's sparsity, pattern and scope (oneshot.py)."""
    masks = _dense(subnetwork.masks)
    weights = {name: subnetwork.matrix(name) for name in masks}
    size = sum(mask.numel() for mask in masks.values())
    sparsity = pruned(subnetwork.masks.values()) / size
    layout = Orientation(transposed(subnetwork.model))
    step = PruningStep(weights, masks, sparsity, subnetwork.scope, orientation=layout)
    parse_pattern(subnetwork.pattern).prune(step)
    return replace(subnetwork, masks=masks)
