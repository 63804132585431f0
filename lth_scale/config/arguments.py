"""The flags of a search and of a transfer. Does not import torch."""

import functools
import math
import os
from dataclasses import dataclass
from typing import Any, Literal

from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.flags import (
    COMPARISON,
    DATA,
    FRACTION,
    SEARCH,
    SEED,
    Range,
    flag,
    flags_of,
    value_type,
)
from lth_scale.config.training_arguments import OTHER_ALLOWED, QUICK_LOOK, Training

__all__ = [
    "OTHER_ALLOWED",
    "QUICK_LOOK",
    "Arguments",
    "Training",
    "Transfer",
    "flags_with",
    "same_value",
]


@dataclass(frozen=True, kw_only=True)
class Arguments(Training):
    """The flags of a search."""

    lr_span: str = flag(
        "what one schedule covers: a round (the paper) or all (the official code) "
        "(default: all_rounds with --rewind none, else round)",
        group=SEARCH,
        choices=("round", "all_rounds"),
    )
    target_sparsity: float = flag(
        "fraction of the prunable weights that are pruned in the last round (default: 0.9)",
        group=SEARCH,
        range=FRACTION,
        grid=True,
    )
    prune_rate: float = flag(
        "fraction pruned per round: of all weights (linear) or of the remaining (geometric)",
        0.1,
        group=SEARCH,
        range=Range(math.ulp(0), 1, "a fraction above 0 and at most 1, such as 0.1"),
    )
    schedule: str = flag("sparsities of the rounds", "linear", group=SEARCH, registry="schedule")
    scope: str = flag(
        "one threshold for all matrices or one per matrix",
        "global",
        group=SEARCH,
        choices=("global", "layerwise"),
        method=True,
    )
    pattern: str = flag(
        "what is pruned together: single weights, N:M (2:4 keeps 2 of 4 in a row) or block:RxC",
        "unstructured",
        group=SEARCH,
        metavar="PATTERN",
        method=True,
    )
    score: str = flag(
        "importance of a weight", "magnitude", group=SEARCH, registry="score", method=True
    )
    rewind: str = flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        group=SEARCH,
        choices=("weights", "lr", "none"),
        method=True,
        grid=True,
    )
    rewind_step: str = flag(
        "i, in steps (100) or as a fraction of a round (0.05)",
        "0",
        group=SEARCH,
        metavar="STEP",
        method=True,
        grid=True,
    )
    dense: str | None = flag(
        "reuse round 0 and θᵢ of this finished search of the same task, seed and training",
        group=SEARCH,
        metavar="DIR",
        grid=True,
    )
    keep_theta: str | None = flag(
        "save θᵢ at these further points for searches that use --dense (0.05,0.1)",
        group=SEARCH,
        metavar="STEPS",
        grid=True,
    )
    control: str = flag(
        "compare the last two tickets with", "none", group=COMPARISON, registry="control", grid=True
    )
    distill: bool = flag(
        "also learn from the dense network's outputs, from round 1 on",
        False,
        group=SEARCH,
        method=True,
    )
    early_bird: bool = flag(
        "stop training a round when the mask it would give is stable",
        False,
        group=SEARCH,
        method=True,
    )


@dataclass(frozen=True, kw_only=True)
class Transfer(Training):
    """The flags of a transfer: train m ⊙ θ on a task, once per seed."""

    seeds: tuple[int, ...] = flag(
        "train once with each seed (default: --seed)",
        group=DATA,
        range=SEED._replace(words="integers from 0 to 4294967295"),
        cosmetic=True,
        grid=True,
    )
    target_sparsity: float | None = flag(
        "without --ticket: the sparsity of random_mask, random_layerwise or one_shot",
        group=SEARCH,
        range=FRACTION,
        grid=True,
    )
    scope: str | None = flag(
        "one_shot without --ticket: one threshold for all matrices or one per matrix "
        "(default: global)",
        group=SEARCH,
        choices=("global", "layerwise"),
        method=True,
    )
    theta: str | None = flag(
        "start the encoder from a theta.safetensors of lth_scale.imp; --ticket must belong to it",
        group=DATA,
        metavar="FILE",
        grid=True,
    )
    control: str = flag(
        "train instead of the ticket", "none", group=COMPARISON, registry="control", grid=True
    )
    compare_with: str | None = flag(
        "a finished transfer of the same task; prints whether this one matches it",
        group=COMPARISON,
        metavar="DIR",
        cosmetic=True,
    )
    connectivity: bool = flag(
        "also train the data orders of the first two seeds from one start and interpolate linearly",
        False,
        group=COMPARISON,
    )
    keep_network: bool = flag(
        "save the network of the first seed for lth_scale.export; implied by --push_to_hub",
        False,
        group=COMPARISON,
        cosmetic=True,
    )


@functools.cache
def flags_with(fact: Literal["cosmetic", "method", "grid", "path", "several"]) -> frozenset[str]:
    """Return the names of the flags of a search or a transfer with a fact of `Flag`.

    `several` selects the flags that take several values.
    """
    return frozenset(
        spec.name
        for kind in (Arguments, Transfer)
        for spec, declared in flags_of(kind)
        if (value_type(spec)[1] if fact == "several" else getattr(declared, fact))
    )


def same_value(name: str, one: Any, other: Any) -> bool:
    """Return True if two values of the flag `name` are equal or paths to the same place."""
    is_path = name == "model_name_or_path" or name in flags_with("path")
    if one == other or not is_path or not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    return EMBEDDED not in (one, other) and os.path.realpath(one) == os.path.realpath(other)
