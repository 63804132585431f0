"""From trained weights to the next mask, wherever the pieces lie."""

from collections.abc import Mapping

from torch import Tensor

from lth_scale.config.arguments import Arguments
from lth_scale.pruning import structured
from lth_scale.pruning.orientation import Orientation, oriented
from lth_scale.pruning.prunable_set import transposed
from lth_scale.pruning.registries import SCORES, parse_pattern
from lth_scale.training.networks import Network


def prune_to(
    sparsity: float,
    masks: dict[str, Tensor],
    net: Network,
    args: Arguments,
    movement: Mapping[str, Tensor],
) -> float:
    """Update this rank's masks in place to a sparsity, and return the threshold.

    movement: the scores of this rank's pieces; without any, the weights themselves are scored.
    """
    engine, targets = net.engine, net.targets
    layout = oriented(
        transposed(engine.meta_model),
        Orientation(
            lambda name, part: engine.all_gather(part, targets[name]),
            lambda name, whole: targets[name].cut(whole),
        ),
    )
    weights = {name: piece.master() for name, piece in targets.items()}
    return structured.prune(
        dict(movement) or weights,
        masks,
        sparsity,
        args.scope,
        parse_pattern(args.pattern),
        engine.ranks,
        layout,
        SCORES[args.score],
    )
