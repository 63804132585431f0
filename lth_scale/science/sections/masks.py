"""Properties of the masks: sparsity by layer, and how alike two tasks' tickets are."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.positions import position
from lth_scale.pruning.similarity import Shared, by_layer_and_kind, chance_similarity
from lth_scale.science import figures
from lth_scale.science.results import CLOSE, StudyResults, percent
from lth_scale.tasks.registry import TASKS

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket

log = logging.getLogger("lth_scale")
LAYERS = (
    "Pruned weights in percent, mean over the seeds' tickets. The figure's colours leave out "
    "outliers, as a box plot's whiskers do; the numbers in the cells are exact."
)
NOT_SAVED = "The similarity of some pairs is missing: the study was saved before it was recorded."
Layers = Mapping[str, Sequence[Mapping[str, float]]]  # task → for each seed, sparsity by matrix
# Pair of tasks → seed → `all`, or `layers` and `kinds` by name → the numbers of a `Shared`.
Common = Mapping[str, Mapping[str, Mapping[str, Any]]]


def masks(study: StudyResults) -> list[Section]:
    """Sparsity by layer, and similarity and overlap if two tasks have tickets of one seed."""
    facts = study.mask_facts or mask_facts(study)
    sparsity = facts["sparsity"]
    layers = {task: [*by_seed.values()] for task, by_seed in facts["layers"].items()}
    by_layer = _by_layer(study, sparsity, layers)
    common, shared = facts.get("common", {}), facts["shared"]
    if not shared:
        return [by_layer]
    section = Section(f"Do the tickets keep the same weights at {percent(sparsity)}?")
    if common:
        _add_similarity(section, study, sparsity, [*layers], common)
    _add_overlap(section, study, sparsity, [*layers], shared)
    section.text += [NOT_SAVED] if shared.keys() - common.keys() else []
    return [by_layer, section]


def mask_facts(study: StudyResults) -> dict[str, Any]:
    """What the report needs of the masks, as JSON.

    sparsity: of the compared masks. layers: sparsity of each matrix by task and seed. shared:
    overlap by pair of tasks (`mlm sst2`) and seed, except of tickets with different base weights.
    common: how many weights each pair keeps, which studies that were saved earlier lack.
    """
    sparsity = _mask_sparsity(study)
    planned = {search.task for search in study.searches if search.target >= sparsity - CLOSE}
    layers: dict[str, dict[str, dict[str, float]]] = {task: {} for task in TASKS if task in planned}
    shared: dict[str, dict[str, float]] = defaultdict(dict)
    common: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
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
            counts = tickets[a].shared(tickets[b])
            if not math.isnan(counts["all"].share):  # NaN for a ticket that keeps nothing
                shared[f"{a} {b}"][str(seed)] = counts["all"].share
                common[f"{a} {b}"][str(seed)] = _grouped(counts)
    return {"sparsity": sparsity, "layers": layers, "shared": shared, "common": common}


def _grouped(counts: Mapping[str, Shared]) -> dict[str, Any]:
    """The counts of two tickets as JSON; counts: as `Ticket.shared` returns them."""
    matrices = {name: shared for name, shared in counts.items() if name != "all"}
    groups = zip(("layers", "kinds"), by_layer_and_kind(matrices), strict=True)
    lists = {group: {name: [*x] for name, x in members.items()} for group, members in groups}
    return {"all": [*counts["all"]], **lists}


def _mask_sparsity(study: StudyResults) -> float:
    """The sparsity of the transfers, or else of most tasks; of several the closest to 70 %."""
    own = [sparsity for task in study.tasks for sparsity in study.sparsities(task)]
    return min(study.transfer_sparsities() or own, key=lambda s: (-own.count(s), abs(s - 0.7)))


def _tickets_by_seed(
    study: StudyResults, sparsity: float
) -> "Iterator[tuple[int, dict[str, Ticket]]]":
    """Each seed with its tickets by task; one seed at a time is in memory."""
    present = [
        (search.seed, search.task, path)
        for search in study.searches
        for reached, path in search.tickets.items()
        if abs(reached - sparsity) <= CLOSE and path.is_file()
    ]
    for seed in sorted({seed for seed, _, _ in present}):
        loaded = {task: _load(path) for other, task, path in present if other == seed}
        yield seed, {task: ticket for task, ticket in loaded.items() if ticket}


def _load(path: Path) -> "Ticket | None":
    """A ticket; None if it has vanished, because its search was begun again."""
    from lth_scale.pruning.ticket import Ticket  # imports torch

    try:
        return Ticket.load(path)
    except ValueError:
        if path.is_file():
            raise
        return None


def _by_layer(study: StudyResults, sparsity: float, layers: Layers) -> Section:
    """A heat map per task of layers × kinds of matrices, and a table of means by kind."""
    names = dict.fromkeys(name for tickets in layers.values() for one in tickets for name in one)
    positions = {name: position(name) for name in names}
    depths, kinds = (list(dict.fromkeys(p[i] for p in positions.values())) for i in (0, 1))
    panels, rows = {}, []
    for task, tickets in layers.items():
        own = {name: p for name, p in positions.items() if not tickets or name in tickets[0]}
        # Two encoders of a model may have the same positions.
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for name, p in own.items():
            found[p] += [ticket[name] for ticket in tickets]
        cells = {p: _mean(sparsities) for p, sparsities in found.items()}
        panels[f"{task} (n = {len(tickets)})"] = figures.Grid(
            depths, kinds, cells, "layer", "kind of matrix"
        )
        by_kind = ([name for name in own if own[name][1] == kind] for kind in kinds)
        means = [
            _mean([ticket[name] for ticket in tickets for name in names])[1] if names else "—"
            for names in by_kind
        ]
        rows.append([task, str(len(tickets)), *means])
    absent = ", ".join(task for task, tickets in layers.items() if not tickets)
    text = LAYERS + (f" Missing tickets: {absent}." if absent else "")
    table = Table("Mean over the layers, percent pruned", ["task", "n", *kinds], rows)
    section = Section(f"Which weights are pruned at {percent(sparsity)}?", [text], [table])
    if positions:
        title = study.title(f"Sparsity by layer, tickets of {percent(sparsity)}")
        picture = figures.heat_maps(panels, title, "pruned weights (%)")
        caption = "Sparsity by layer and kind of matrix, mean over n tickets"
        section.pictures["layers.png"] = (caption, picture)
    return section


def _mean(fractions: Sequence[float]) -> tuple[float, str]:
    mean = 100 * fmean(fractions) if fractions else math.nan
    return mean, "missing" if math.isnan(mean) else f"{mean:.1f}"


def _add_similarity(
    section: Section, study: StudyResults, sparsity: float, tasks: Sequence[str], common: Common
) -> None:
    level = chance_similarity(sparsity, sparsity)
    section.text.append(
        "Similarity: weights that the tickets of two tasks both keep ÷ weights that either keeps, "
        "|A∩B| ÷ |A∪B|, in percent, mean over pairs of tickets of the same seed. Two random masks "
        f"of this sparsity have {percent(level)}."
    )
    by_pair = {
        pair: [Shared(*counts["all"]).similarity for counts in by_seed.values()]
        for pair, by_seed in common.items()
    }
    grid = _by_pair(tasks, by_pair)
    n = figures.count_text(map(len, by_pair.values()))
    heading, title = (
        f"Similarity of masks, percent, {n}",
        f"Similarity, chance {percent(level)}, {n}",
    )
    span = (100 * level, 100.0)
    picture = figures.heat_maps({"": grid}, study.title(title), "similarity (%)", span)
    section.tables.append(grid.table(heading))
    section.pictures["similarity.png"] = (heading, picture)
    section.details += [
        _similarity_within(common, "kinds", "Similarity by kind of matrix"),
        _similarity_within(common, "layers", "Similarity by layer"),
    ]


def _similarity_within(common: Common, group: str, title: str) -> Table:
    """A row per pair of tasks; group: `kinds` or `layers`."""
    names = dict.fromkeys(
        name for by_seed in common.values() for counts in by_seed.values() for name in counts[group]
    )
    rows = []
    for pair, by_seed in common.items():
        row = [pair.replace(" ", ", "), str(len(by_seed))]
        for name in names:
            known = [Shared(*one[group][name]) for one in by_seed.values() if name in one[group]]
            means = (_mean([x.similarity for x in known])[1], _mean([x.chance for x in known])[1])
            row.append("{} ({})".format(*means) if known else "—")
        rows.append(row)
    return Table(f"{title}, percent (by chance)", ["tickets", "n", *names], rows)


def _by_pair(tasks: Sequence[str], values: Mapping[str, Sequence[float]]) -> figures.Grid:
    """Means by pair of tasks; values: by pair as in `mask_facts`, in any order of the two."""
    by_pair = {frozenset(pair.split()): numbers for pair, numbers in values.items()}
    cells = {pair: _mean(by_pair.get(frozenset(pair), [])) for pair in permutations(tasks, 2)}
    return figures.Grid(tasks, tasks, cells, "ticket of", "ticket of")


def _add_overlap(
    section: Section,
    study: StudyResults,
    sparsity: float,
    tasks: Sequence[str],
    shared: Mapping[str, Mapping[str, float]],
) -> None:
    chance = percent(1 - sparsity)
    section.reading.append(
        "Overlap: share of the weights kept by one task's ticket that the other's keeps too, in "
        "percent, mean over pairs of tickets of the same seed. Two random masks of this sparsity "
        f"share {chance}."
    )
    grid = _by_pair(tasks, {pair: [*by_seed.values()] for pair, by_seed in shared.items()})
    n = figures.count_text(map(len, shared.values()))
    heading, title = f"Overlap of kept weights, percent, {n}", f"Overlap, chance {chance}, {n}"
    span = (100 * (1 - sparsity), 100.0)
    picture = figures.heat_maps({"": grid}, study.title(title), "shared (%)", span)
    section.details.append(grid.table(heading))
    section.pictures["overlap.png"] = (heading, picture)
