"""Scores, schedules, patterns and controls by name, one line an entry. Imports no torch.

Third parties add their own with `register_score`, `register_schedule`, `register_pattern` and
`register_control` before a command parses its flags.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lth_scale.config.errors import BadInput
from lth_scale.config.registry import Registry, lazy, parse_with
from lth_scale.pruning.patterns import (
    ACCUMULATED_TAYLOR,
    MAGNITUDE,
    Pattern,
    Score,
    blocks,
    n_of_m,
    unstructured,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SCORES: Registry[Score] = Registry("score")
register_score = SCORES.register
register_score("magnitude", MAGNITUDE)
register_score("accumulated_taylor", ACCUMULATED_TAYLOR)
SCORES.rename(
    "movement",
    "accumulated_taylor",
    "it is a first-order Taylor score accumulated over training, not movement pruning: it learns "
    "no scores, has no straight-through estimator, and nothing that is pruned comes back",
)

# A name is the syntax that `--pattern` takes; its entry returns None for any other text.
PATTERNS: Registry[Callable[[str], Pattern | None]] = Registry("pattern")
register_pattern = PATTERNS.register
register_pattern("unstructured", unstructured)
register_pattern("N:M such as 2:4", n_of_m)
register_pattern("block:RxC such as block:4x1", blocks)


def parse_pattern(text: str) -> Pattern:
    """The pattern that `--pattern TEXT` names. Raises BadInput."""
    return parse_with(PATTERNS, text)


def check_pattern(
    text: str, shapes: Mapping[str, Sequence[int]], transposed: Collection[str] = ()
) -> None:
    """Raise BadInput, naming the matrix, if `--pattern TEXT` does not divide it.

    transposed: the names of the matrices that are (inputs, outputs).
    """
    rows, columns = parse_pattern(text).tile
    for name, shape in shapes.items():
        outputs, inputs = shape[1::-1] if name in transposed else shape[:2]
        if outputs % rows or inputs % columns:
            raise BadInput(
                f"--pattern {text}: does not divide {name} of shape {tuple(shape)}; "
                "use a pattern that does"
            )


@dataclass(frozen=True)
class Schedule:
    """How sparsity grows from round to round.

    pruned: (share to prune in all, rate, k) → the share pruned after round k. rounds: (start, near,
    target, rate) → how many rounds lead from `start` to `near`, the point from which the last step
    goes to `target`. of_original: shares are of the original weights; else of those that remain at
    the start.
    """

    pruned: Callable[[float, float, int], float]
    rounds: Callable[[float, float, float, float], float]
    of_original: bool = False

    def count(self, target: float, rate: float, start: float = 0.0) -> float:
        """How many rounds after round 0 lead from `start` to `target`, to be rounded up."""
        if start >= target:
            return 0
        if rate == 1:
            return 1
        return max(1.0, self.rounds(start, max(start, target - rate / 100), target, rate))

    def sparsities(self, target: float, rate: float, start: float = 0.0) -> list[float]:
        """The sparsity of rounds 0, 1, …, K as fractions of the prunable set; the last is `target`.

        A search that starts from a ticket starts at the sparsity of the ticket. A last step of less
        than a hundredth of the rate is merged into the step before it.
        """
        if start >= target:
            return [start]
        share = target - start if self.of_original else (target - start) / (1 - start)
        ladder = [start]
        for k in range(1, math.ceil(self.count(target, rate, start))):
            pruned = self.pruned(share, rate, k)
            sparsity = start + pruned if self.of_original else 1 - (1 - start) * (1 - pruned)
            if sparsity >= target - rate / 100:
                break
            ladder.append(round(sparsity, 12))  # 12 digits make 3 × 0.1 equal 0.3
        return [*ladder, target]


SCHEDULES: Registry[Schedule] = Registry("schedule")
register_schedule = SCHEDULES.register
# `rate` of the original weights a round: the official code
register_schedule(
    "linear",
    Schedule(
        pruned=lambda share, rate, k: rate * k,
        rounds=lambda start, near, target, rate: (near - start) / rate,
        of_original=True,
    ),
)
# `rate` of the remaining weights a round: the text of the paper
register_schedule(
    "geometric",
    Schedule(
        pruned=lambda share, rate, k: 1 - (1 - rate) ** k,
        rounds=lambda start, near, target, rate: (
            (math.log1p(-near) - math.log1p(-start)) / math.log1p(-rate)
        ),
    ),
)
register_schedule("one_shot", Schedule(pruned=lambda share, *_: share, rounds=lambda *_: 1))
# Zhu & Gupta 2017 (arXiv:1710.01878), equation 1
register_schedule(
    "cubic",
    Schedule(
        pruned=lambda share, rate, k: share * (1 - (1 - min(1, k / math.ceil(share / rate))) ** 3),
        rounds=lambda start, near, target, rate: (target - start) / (1 - start) / rate,
    ),
)


def sparsities(schedule: str, target: float, rate: float, start: float = 0.0) -> list[float]:
    """The sparsities of the rounds under a registered schedule, as `Schedule.sparsities`."""
    return SCHEDULES[schedule].sparsities(target, rate, start)


@dataclass(frozen=True)
class Subnetwork:
    """m ⊙ θ before training.

    weights: whole, fp32, by their names in the model. masks: bool, by their names in a ticket, True
    keeps. names: ticket → model. model: an instance of the network's class, for its configuration;
    its weights are not used. pattern, scope: of the search that found the ticket.
    """

    weights: "dict[str, Tensor]"
    masks: "dict[str, Tensor]"
    names: Mapping[str, str]
    model: "PreTrainedModel"
    pattern: str = "unstructured"
    scope: str = "global"

    def matrix(self, name: str) -> "Tensor":
        """The weights of a prunable matrix, by its name in a ticket."""
        return self.weights[self.names[name]]


class Budget(NamedTuple):
    """How much training a control gets, in trainings of a round or of a transfer.

    length: how many times as long one training is. restarts: how many trainings of that length
    there are, with a seed each; the one with the best score counts.
    """

    length: int = 1
    restarts: int = 1

    @property
    def total(self) -> int:
        """Trainings of a round in all."""
        return self.length * self.restarts


@dataclass(frozen=True)
class Control:
    """A subnetwork of the same sparsity without the finding; or, with a budget, a reference.

    label: its name in figures and tables. make: (subnetwork, seed) → the control to train in its
    place; modifies no tensor of its input. needs_ticket: uses a ticket's mask, not only its
    sparsity. by_count: depends only on the number of pruned weights, so that one training serves
    the tickets of all searches. by_scope: prunes under `--scope`. base_weights: trains the weights
    of the base model. budget: k → the training of a stronger reference beside a ticket of round k,
    which starts from θ₀ and has a learning rate schedule of its own; it need not have the ticket's
    sparsity. None: trained as the ticket is.
    """

    label: str
    make: Callable[[Subnetwork, int], Subnetwork]
    needs_ticket: bool = True
    by_count: bool = False
    by_scope: bool = False
    base_weights: bool = True
    budget: Callable[[int], Budget] | None = None


CONTROLS: Registry[Control] = Registry("control")


def register_control(
    name: str,
    label: str,
    make: Callable[[Subnetwork, int], Subnetwork],
    budget: Callable[[int], Budget] | None = None,
    **facts: bool,
) -> Control:
    """Add a control under `--control NAME`; label, make, budget, facts: as in `Control`."""
    return CONTROLS.register(name, Control(label, make, budget=budget, **facts))


def _add(name: str, label: str, **facts: bool) -> None:
    register_control(name, label, lazy(f"lth_scale.pruning.controls:{name}"), None, **facts)


_add("none", "IMP ticket")
_add("random_mask", "random mask", needs_ticket=False, by_count=True)
_add("random_layerwise", "random mask, the ticket's sparsity by matrix", needs_ticket=False)
_add("reinit", "ticket on θ₀′ (re-initialised)", base_weights=False)
_add("shuffle_layers", "ticket on θ₀″ (layers shuffled)", base_weights=False)
_add("shuffle_within", "ticket on θ₀″ (shuffled within matrices)", base_weights=False)
_add("one_shot", "θ₀ pruned in one shot", needs_ticket=False, by_count=True, by_scope=True)

# Fair budgets: a ticket of round k has seen k rounds of search, and is then trained
_dense = lazy("lth_scale.pruning.controls:dense")
register_control(
    "dense_long",
    "dense network, k + 1 times as long",
    _dense,
    budget=lambda rounds: Budget(length=rounds + 1),
)
register_control(
    "dense_restarts",
    "best of k + 1 dense networks",
    _dense,
    budget=lambda rounds: Budget(restarts=rounds + 1),
)
