"""Scores, schedules, patterns and controls by name, one line an entry. Does not import torch.

Third parties add their own with `register_score`, `register_schedule`, `register_pattern` and
`register_control` before a command parses its flags.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lth_scale.config.errors import BadInput
from lth_scale.config.registry import Registry, lazy, parse_with
from lth_scale.pruning.patterns import Blocks, NofM, Pattern, Unstructured
from lth_scale.pruning.schedules import CUBIC, GEOMETRIC, LINEAR, ONE_SHOT, Schedule
from lth_scale.pruning.scores import MAGNITUDE, MOVEMENT, Score

if TYPE_CHECKING:
    from lth_scale.pruning.subnetwork import Subnetwork


class MakeControl(Protocol):
    """(subnetwork, seed) → the control to train in its place. Modifies no tensor of its input."""

    def __call__(self, subnetwork: "Subnetwork", seed: int) -> "Subnetwork": ...


@dataclass(frozen=True)
class Control:
    """A subnetwork of the same sparsity without the finding.

    label: its name in figures and tables. needs_ticket: uses a ticket's mask; else a sparsity is
    enough. by_count: depends on the number of pruned weights alone, so that one training serves
    the tickets of all searches. by_scope: prunes under `--scope`. base_weights: trains the weights
    of the base model.
    """

    label: str
    make: MakeControl
    needs_ticket: bool = True
    by_count: bool = False
    by_scope: bool = False
    base_weights: bool = True


SCORES: Registry[Score] = Registry("score")
register_score = SCORES.register
register_score("magnitude", MAGNITUDE)
register_score("movement", MOVEMENT)

SCHEDULES: Registry[Schedule] = Registry("schedule")
register_schedule = SCHEDULES.register
register_schedule("linear", LINEAR)
register_schedule("geometric", GEOMETRIC)
register_schedule("one_shot", ONE_SHOT)
register_schedule("cubic", CUBIC)

# A name is the syntax that `--pattern` takes; its entry returns None for any other text.
PATTERNS: Registry[Callable[[str], Pattern | None]] = Registry("pattern")
register_pattern = PATTERNS.register
register_pattern("unstructured", Unstructured.parse)
register_pattern("N:M such as 2:4", NofM.parse)
register_pattern("block:RxC such as block:4x1", Blocks.parse)

CONTROLS: Registry[Control] = Registry("control")


def register_control(name: str, label: str, make: MakeControl, **facts: bool) -> Control:
    """Add a control under `--control NAME`; label, make, facts: as in `Control`."""
    return CONTROLS.register(name, Control(label, make, **facts))


def _add(name: str, label: str, **facts: bool) -> None:
    register_control(name, label, lazy(f"lth_scale.pruning.controls:{name}"), **facts)


_add("none", "IMP ticket")
_add("random_mask", "random mask", needs_ticket=False, by_count=True)
_add("random_layerwise", "random mask, the ticket's sparsity by matrix", needs_ticket=False)
_add("reinit", "ticket on θ₀′ (re-initialised)", base_weights=False)
_add("shuffle_layers", "ticket on θ₀″ (layers shuffled)", base_weights=False)
_add("shuffle_within", "ticket on θ₀″ (shuffled within matrices)", base_weights=False)
_add("one_shot", "θ₀ pruned in one shot", needs_ticket=False, by_count=True, by_scope=True)


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


def sparsities(schedule: str, target: float, rate: float, start: float = 0.0) -> list[float]:
    """The sparsities of the rounds under a registered schedule, as `Schedule.sparsities`."""
    return SCHEDULES[schedule].sparsities(target, rate, start)
