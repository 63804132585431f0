"""Controls: a subnetwork of a ticket's sparsity without its finding. One function each."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.pruning import patterns, threshold
from lth_scale.pruning.prunable_set import transposed

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Start:
    """m ⊙ θ before training.

    weights: whole, fp32, by their names in the model. masks: bool, by their names in a ticket, True keeps.
    names: ticket → model. model: the network's class and configuration (its weights are not looked at).
    pattern, scope: how the ticket's weights were pruned (`--pattern`, `--scope`).
    """

    weights: Tensors
    masks: Tensors
    names: Mapping[str, str]
    model: PreTrainedModel
    pattern: str = "unstructured"
    scope: str = "global"

    def matrix(self, name: str) -> Tensor:
        """The weights of a prunable matrix, by its name in a ticket."""
        return self.weights[self.names[name]]


def pruned(masks: Iterable[Tensor]) -> int:
    """How many weights the masks prune."""
    return sum(mask.numel() - int(mask.sum()) for mask in masks)


def _random(masks: Tensors, count: int, generator: torch.Generator) -> Tensors:
    scores = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    chosen = {name: torch.ones_like(mask) for name, mask in masks.items()}
    threshold.smallest(scores, chosen, count)
    return chosen


def random_mask(start: Start, seed: int) -> Start:
    """m_RP: as many weights pruned uniformly at random, in all matrices together.

    The official code magnitude-prunes a freshly initialised BERT, which is the same (oneshot.py --weight rand).
    The same seed gives nested masks.
    """
    generator = torch.Generator().manual_seed(seed)
    return replace(start, masks=_random(start.masks, pruned(start.masks.values()), generator))


def random_layerwise(start: Start, seed: int) -> Start:
    """As many weights of each matrix pruned uniformly at random: the ticket's sparsity by layer, not its choice."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: _random({name: mask}, pruned([mask]), generator)[name]
        for name, mask in start.masks.items()
    }
    return replace(start, masks=masks)


def reinit(start: Start, seed: int) -> Start:
    """θ₀′: the whole network drawn anew by the model's own initializer, embeddings and head too (glue_trans.py)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        drawn = type(start.model)(start.model.config)
    return replace(
        start, weights={name: weight.detach().float() for name, weight in drawn.named_parameters()}
    )


def shuffle_layers(start: Start, seed: int) -> Start:
    """θ₀″ of the official code: one permutation of the layers, applied to all their matrices (pertub_weight.py).

    Pooler, biases, LayerNorm and embeddings stay. Matrices of other shapes than their namesakes stay too. Never the
    identity. Raises BadInput where no two layers are alike.
    """
    layers: dict[str, dict[int, str]] = {}
    for name in start.masks:
        stack = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        if stack:
            namesakes = f"{stack[1]}#{stack[3]} {tuple(start.masks[name].shape)}"
            layers.setdefault(namesakes, {})[int(stack[2])] = name
    weights, deepest = dict(start.weights), max(map(len, layers.values()), default=0)
    if deepest < 2:
        raise BadInput(
            "--control shuffle_layers: the model has no two layers alike; take shuffle_within"
        )
    for kind in layers.values():
        order = other_order(
            len(kind), seed
        )  # the same for all of one depth, so that a layer moves as a whole
        sources = [kind[layer] for layer in sorted(kind)]
        for target, index in zip(sources, order, strict=True):
            weights[start.names[target]] = start.matrix(sources[index])
    return replace(start, weights=weights)


def other_order(count: int, seed: int) -> list[int]:
    """A random order of `count` things, but never the one they are in, unless there is one thing alone."""
    generator, order = torch.Generator().manual_seed(seed), list(range(count))
    while count > 1 and order == sorted(order):
        order = torch.randperm(count, generator=generator).tolist()
    return order


def shuffle_within(start: Start, seed: int) -> Start:
    """θ₀″ of the paper's text: the weights of each matrix permuted among themselves."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(start.weights)
    for name in start.masks:
        matrix = start.matrix(name)
        order = torch.randperm(matrix.numel(), generator=generator)
        weights[start.names[name]] = matrix.reshape(-1)[order].view(matrix.shape)
    return replace(start, weights=weights)


def one_shot(start: Start, seed: int) -> Start:
    """As many weights pruned as the ticket has, the smallest of θ₀ at once, before any training (oneshot.py).

    Under the ticket's own scope: of all matrices together, or of each alone.
    """
    masks = {name: torch.ones_like(mask) for name, mask in start.masks.items()}
    share = pruned(start.masks.values()) / sum(mask.numel() for mask in masks.values())
    layout = patterns.oriented(transposed(start.model))
    matrices = {name: start.matrix(name) for name in masks}
    patterns.prune(matrices, masks, share, start.scope, start.pattern, layout=layout)
    return replace(start, masks=masks)


def none(start: Start, seed: int) -> Start:
    """The ticket itself."""
    return start
