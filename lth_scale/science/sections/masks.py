"""Properties of the masks: sparsity by layer, and the overlap of two tasks' tickets."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lth_scale.config.markdown import Section, Table
from lth_scale.science import figures
from lth_scale.science.results import CLOSE, StudyResults, percent
from lth_scale.tasks.registry import TASKS

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket

log = logging.getLogger("lth_scale")
# Kinds of matrices by the end of their parameters' names.
KINDS = {
    "attention.self.query": "Q",
    "attention.self.key": "K",
    "attention.self.value": "V",
    "attention.output.dense": "attn. out",
    "intermediate.dense": "FFN in",
    "output.dense": "FFN out",
}
LAYERS = "Pruned weights in percent, mean over the seeds' tickets. Rows of the figure are layers."
Layers = Mapping[str, Sequence[Mapping[str, float]]]  # task → for each seed, sparsity by matrix


def masks(study: StudyResults) -> list[Section]:
    """Sparsity by layer, and the overlap if there are several tasks."""
    facts = study.mask_facts or mask_facts(study)
    sparsity = facts["sparsity"]
    layers = {task: [*by_seed.values()] for task, by_seed in facts["layers"].items()}
    sections = [_by_layer(study, sparsity, layers)]
    if len(layers) > 1:
        sections.append(_overlap(study, sparsity, [*layers], facts["shared"]))
    return sections


def mask_facts(study: StudyResults) -> dict[str, Any]:
    """What the report needs of the masks, as JSON.

    sparsity: of the compared masks. layers: sparsity of each matrix by task and seed. shared:
    overlap by pair of tasks (`mlm sst2`) and seed, except of tickets with different base weights.
    """
    sparsity = _mask_sparsity(study)
    planned = {search.task for search in study.searches if search.target >= sparsity - CLOSE}
    layers: dict[str, dict[str, dict[str, float]]] = {task: {} for task in TASKS if task in planned}
    shared: dict[str, dict[str, float]] = defaultdict(dict)
    for seed, tickets in _tickets_by_seed(study, sparsity):
        for task, ticket in tickets.items():
            layers[task][str(seed)] = ticket.layer_sparsity()
        for a, b in combinations(tickets, 2):
            if tickets[a].is_of_other_weights(tickets[b].base_sha256):
                log.warning(
                    f"the tickets of {a} and {b} have base models with different weights: their "
                    "overlap is omitted"
                )
                continue
            share = tickets[a].overlap(tickets[b])["all"]
            if not math.isnan(share):  # NaN for a ticket that keeps nothing
                shared[f"{a} {b}"][str(seed)] = share
    return {"sparsity": sparsity, "layers": layers, "shared": shared}


def _mask_sparsity(study: StudyResults) -> float:
    """The sparsity of the transfers, or else of most tasks; of several the closest to 70 %."""
    own = [sparsity for task in study.tasks for sparsity in study.sparsities(task)]
    return min(study.transfer_sparsities() or own, key=lambda s: (-own.count(s), abs(s - 0.7)))


def _tickets_by_seed(
    study: StudyResults, sparsity: float
) -> "Iterator[tuple[int, dict[str, Ticket]]]":
    """Each seed with its tickets by task; one seed at a time is in memory."""
    from lth_scale.pruning.ticket import Ticket  # imports torch

    present = [
        (search.seed, search.task, path)
        for search in study.searches
        for reached, path in search.tickets.items()
        if abs(reached - sparsity) <= CLOSE and path.is_file()
    ]
    for seed in sorted({seed for seed, _, _ in present}):
        yield seed, {task: Ticket.load(path) for other, task, path in present if other == seed}


def _by_layer(study: StudyResults, sparsity: float, layers: Layers) -> Section:
    """A heat map per task of layers × kinds of matrices, and a table of means by kind."""
    names = dict.fromkeys(name for tickets in layers.values() for one in tickets for name in one)
    positions = {name: _position(name) for name in names}
    depths, kinds = (list(dict.fromkeys(p[i] for p in positions.values())) for i in (0, 1))
    panels, rows = {}, []
    for task, tickets in layers.items():
        own = {name: p for name, p in positions.items() if not tickets or name in tickets[0]}
        cells = {p: _mean([ticket[name] for ticket in tickets]) for name, p in own.items()}
        panels[f"{task} (n = {len(tickets)})"] = figures.Grid(depths, kinds, cells)
        by_kind = ([name for name in own if own[name][1] == kind] for kind in kinds)
        means = [
            _mean([ticket[name] for ticket in tickets for name in names])[1] if names else "—"
            for names in by_kind
        ]
        rows.append([task, str(len(tickets)), *means])
    absent = ", ".join(task for task, tickets in layers.items() if not tickets)
    text = LAYERS + (f" Missing tickets: {absent}." if absent else "")
    table = Table("Mean over the layers, percent pruned", ["task", "n", *kinds], rows)
    section = Section(f"Sparsity by layer at {percent(sparsity)}", [text], [table])
    if positions:
        png = figures.heat_maps(panels, study.title("Sparsity by layer"), "pruned (%)")
        section.pictures["layers.png"] = ("sparsity by layer and kind of matrix", png)
    return section


def _position(name: str) -> tuple[str, str]:
    """('3', 'Q') for a matrix of layer 3; ('', its name) outside of the layers."""
    match = re.fullmatch(r"(?:.*?\.(\d+)\.)?(.+)\.weight", name)
    return (match[1] or "", KINDS.get(match[2], match[2])) if match else ("", name)


def _mean(fractions: Sequence[float]) -> tuple[float, str]:
    mean = 100 * fmean(fractions) if fractions else math.nan
    return mean, "missing" if math.isnan(mean) else f"{mean:.1f}"


def _overlap(
    study: StudyResults,
    sparsity: float,
    tasks: Sequence[str],
    shared: Mapping[str, Mapping[str, float]],
) -> Section:
    chance = percent(1 - sparsity)
    text = (
        "Share of the weights kept by one task's ticket that the other's keeps too, in percent, "
        "mean over pairs of tickets of the same seed. Two random masks of this sparsity share "
        f"{chance}. Hatched: missing, or a task with itself."
    )
    by_pair = {frozenset(pair.split()): [*by_seed.values()] for pair, by_seed in shared.items()}
    cells = {pair: _mean(by_pair.get(frozenset(pair), [])) for pair in permutations(tasks, 2)}
    grid = figures.Grid(tasks, tasks, cells)
    heading, title = "Overlap of kept weights, percent", f"Overlap of tickets, chance {chance}"
    png = figures.heat_maps(
        {"": grid}, study.title(title), "shared (%)", (100 * (1 - sparsity), 100.0)
    )
    pictures = {"overlap.png": (heading, png)}
    title = f"Overlap of tickets at {percent(sparsity)}"
    return Section(title, [text], [grid.table(heading)], pictures)
