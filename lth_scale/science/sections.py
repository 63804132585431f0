"""What a study found: the tables and figures of the paper beside its own numbers, and verdicts, as sections of a page.

Reads study.json and the results of the jobs that it names, nothing else. Scores are in percent points.
"""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise, product
from statistics import fmean
from typing import Any

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science import figures
from lth_scale.science.matching import (
    RULES,
    WORDS,
    at_least,
    decide,
    holm,
    summary,
    tested,
    verdicts,
)
from lth_scale.science.paper import at_paper, figure2, paper, printed, sources
from lth_scale.science.results import (
    CLOSE,
    OTHER,
    OWN,
    THETA,
    UNSCALED,
    Group,
    StudyResults,
    percent,
)
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.mlflow.registration import Registration

log = logging.getLogger("lth_scale")
SHADES = (0.0, 1.0)  # dark and light, in the figures of transfer
KINDS = {
    "attention.self.query": "Q",
    "attention.self.key": "K",
    "attention.self.value": "V",
    "attention.output.dense": "attn. out",
    "intermediate.dense": "FFN in",
    "output.dense": "FFN out",
}
COLUMNS = {  # control → its heading, and its name in paper.json
    "random_mask": ("f(m_RP, θ₀)", "f(m_RP,theta0)"),
    "reinit": ("f(m_IMP, θ₀′)", "f(m_IMP,theta0')"),
    "shuffle_layers": ("f(m_IMP, θ₀″), layers shuffled, as the paper's code", "f(m_IMP,theta0'')"),
    "shuffle_within": ("f(m_IMP, θ₀″), shuffled within, as its text", ""),
}
WNLI = "WNLI is at chance by design (its validation contradicts its training): no comparison on it means anything."
CAUTION = "A match by welch or paired says only that no loss beyond δ was shown: few seeds, and Holm, seldom show one."
CURVES = "Means over seeds; bars, and the grey band of the full network, reach from the least to the greatest seed."


def sections(study: StudyResults, delta: float) -> list[Section]:
    """Those parts of the report that the study planned; `delta` is in percent points."""
    made = [summarise(study)]
    tasks, across = [task for task in study.tasks if study.own(task)], study.transferred()
    if tasks:
        made += [table2(study, tasks, delta), curves(study, tasks)]
    made += [transfer(study, sparsity) for sparsity in across]
    rewound = [task for task in study.tasks if study.own(task, rewound=True)]
    if rewound:
        made.append(rewinding(study, rewound, delta))
    if tasks or across:
        made += [*masks(study), every_verdict(study, delta)]
    return made


def summarise(study: StudyResults) -> Section:
    """What was planned and what is there."""
    unfinished = [job for job, finished in study.finished.items() if not finished]
    seeds = sorted({cell.seed for cell in study.cells})
    text = [
        f"Model: {study.model}. Tasks: {', '.join(study.tasks)}. Seeds: {', '.join(map(str, seeds))}. Scores are in "
        "percent points; ± is one standard deviation over seeds (n − 1 in the denominator), n the number of seeds. "
        f"The paper is {paper()['paper']}.",
        f"Jobs: {len(study.finished)} planned, {len(unfinished)} not finished: {', '.join(unfinished) or 'none'}.",
    ]
    text += (
        ["With one seed there is no spread: a rule that needs one says “cannot be told”."]
        if len(seeds) < 2
        else []
    )
    text += [WNLI] if "wnli" in study.tasks else []
    rows = []
    for kind in [*dict.fromkeys(cell.kind for cell in study.cells), "all"]:
        there = [bool(cell.evals) for cell in study.cells if kind in (cell.kind, "all")]
        rows.append([kind, *map(str, (len(there), sum(there), there.count(False)))])
    tables = [Table("Trainings", ["what", "planned", "there", "missing"], rows)]
    if study.starved:
        title = "Little or nothing passes through some matrices"
        tables.append(Table(title, ["job", "of", "what its mask leaves"], study.starved))
    return Section("Summary", text, tables)


def table2(study: StudyResults, tasks: Sequence[str], delta: float) -> Section:
    """The paper's Table 2 and the verdicts on its tickets."""
    planned = {c.control for c in study.cells} | set(COLUMNS)
    controls = [control for control in CONTROLS if control != "none" and control in planned]
    rows, entries, orders = [], [], []
    for task in tasks:
        sparsity, words = at_paper(task, study.compared(task))
        full, *ours = (
            study.group(task),
            *(study.group(task, sparsity, control) for control in ("none", *controls)),
        )
        rows += [
            [task, "here", study.metric(task), words, *map(str, [full, *ours])],
            paper_row(task, controls),
        ]
        entries.append(([task, percent(sparsity)], ours[0], full))
        orders.append([task, words, *order(task, controls, [full, *ours])])
    names = [COLUMNS[c][0] if c in COLUMNS else CONTROLS[c].label for c in controls]
    tables = [
        Table(
            "Scores", ["task", "", "metric", "sparsity", "full f(θ₀)", "f(m_IMP, θ₀)", *names], rows
        ),
        Table("Order of the means", ["task", "sparsity", "here", "paper"], orders),
        verdict_table(
            "Is the ticket matching the full network?", ["task", "sparsity"], entries, delta
        ),
        highest(study, tasks, delta),
    ]
    against = [e for task in tasks for e in beside_ticket(study, task)]
    if against:
        labels, title = ["task", "sparsity", "control"], "Is a control as good as the ticket?"
        tables.append(verdict_table(title, labels, against, delta))
    rules = "; ".join(f"{rule}: {meaning}" for rule, meaning in RULES.items())
    known = sources([*paper()["table2"].values(), *paper()["table4_strict_sparsity"].values()])
    text = [known, f"Rules: {rules}. {CAUTION}"]
    return Section("The tickets and their controls (the paper's Table 2)", text, tables)


def order(task: str, controls: Sequence[str], groups: Sequence[Group]) -> tuple[str, str]:
    """The networks that both have, by their mean score, the best first: here, and in the paper's Table 2."""
    keys = {"full": "full_bert_mean", "IMP": "f(m_IMP,theta0)_mean"}
    keys |= {control: COLUMNS.get(control, ("", ""))[1] for control in controls}
    ours = {name: summary(group.scores).mean for name, group in zip(keys, groups, strict=True)}
    theirs = {
        name: printed(task)[key] for name, key in keys.items() if key and not math.isnan(ours[name])
    }
    return ranked({name: ours[name] for name in theirs}), ranked(theirs)


def ranked(means: Mapping[str, float]) -> str:
    """Names by their means in points, the best first; `=` between those that are printed alike."""
    names = sorted(means, key=means.__getitem__, reverse=True)
    signs = [" = " if f"{means[a]:.1f}" == f"{means[b]:.1f}" else " > " for a, b in pairwise(names)]
    return (
        "".join(sign + name for sign, name in zip(["", *signs], names, strict=False)) or "missing"
    )


def beside_ticket(study: StudyResults, task: str) -> list[Any]:
    """Each control of a task beside the ticket of its sparsity, for `verdict_table`."""
    mine = {
        (c.sparsity, c.control)
        for c in study.cells
        if c.task == c.source == task and c.control != "none"
    }
    pairs = sorted(mine, key=lambda pair: (pair[0], [*CONTROLS].index(pair[1])))
    return [
        (
            [task, percent(s), CONTROLS[control].label],
            study.group(task, s, control),
            study.group(task, s),
        )
        for s, control in pairs
    ]


def paper_row(task: str, controls: Sequence[str]) -> list[str]:
    """The paper's Table 2 for a task, in the columns of ours."""
    row, metric = printed(task), paper()["hyperparameters"][task]["metric"]["value"]
    means = [
        f"{row[f'{k}_mean']:g} ± {row[f'{k}_std']:g} (n = 5)"
        for k in ("full_bert", "f(m_IMP,theta0)")
    ]
    keys = [COLUMNS.get(control, ("", ""))[1] for control in controls]
    return [
        "",
        "paper",
        metric,
        f"{row['sparsity']} %",
        *means,
        *(f"{row[k]:g}" if k else "—" for k in keys),
    ]


def verdict_table(
    title: str, labels: list[str], entries: list[Any], delta: float, adjust: bool = True
) -> Table:
    """A row an entry (labels, subnetwork, full network): each rule's verdict, with δ, p and n.

    `adjust` applies Holm's correction to welch's p over all entries.
    """
    told = [
        {v.rule: v for v in verdicts(sub.scores, full.scores, delta)} for _, sub, full in entries
    ]
    welch = [v["welch"].p for v in told]
    rows = []
    for (names, sub, full), by_rule, p in zip(
        entries, told, holm(welch) if adjust else welch, strict=True
    ):
        texts = [WORDS[by_rule[rule].matches] for rule in list(RULES)[:3]]
        texts.append(
            WORDS[decide(p)]
            + tested("p", by_rule["welch"].p)
            + (tested("Holm", p) if adjust else "")
        )
        pair = by_rule["paired"]
        pairs = "" if pair.p is None else f", n = {pair.sub.n} pairs"
        texts.append(WORDS[pair.matches] + tested("p", pair.p) + pairs)
        rows.append([*names, str(sub), str(full), signed(sub - full), *texts])
    counted = f", Holm over {sum(p is not None for p in welch)}" if adjust else ""
    *rules, last, paired = RULES
    tests = [f"{last}, δ = {delta:g}{counted}", f"{paired}, δ = {delta:g}"]
    return Table(
        title, [*labels, "subnetwork", "compared with", "difference", *rules, *tests], rows
    )


def highest(study: StudyResults, tasks: Sequence[str], delta: float) -> Table:
    """Per task and rule, the largest sparsity at which the rule holds and the least at which it does not."""
    rows = []
    for task in tasks:
        theirs = (f"{printed(task)[key]} %" for key in ("sparsity", "strict"))
        rows.append([task, *extent(study, task, delta).values(), *theirs])
    names = [
        f"{rule}, δ = {delta:g}, p uncorrected" if rule in ("welch", "paired") else rule
        for rule in RULES
    ]
    header = ["task", *names, "paper, Table 2 (within sd)", "paper, Table 4 (strict)"]
    return Table(
        "Highest sparsity that matches (n and p of each are in the last section)", header, rows
    )


def extent(study: StudyResults, task: str, delta: float) -> dict[str, str]:
    """By rule, the largest sparsity at which it holds for the task's own ticket, and the least at which it does not."""
    told: dict[str, dict[float, bool | None]] = {rule: {} for rule in RULES}
    for sparsity in study.own(task):
        for v in verdicts(study.group(task, sparsity).scores, study.group(task).scores, delta):
            told[v.rule][sparsity] = v.matches
    return {rule: _range(each) for rule, each in told.items()}


def _range(told: Mapping[float, bool | None]) -> str:
    yes, no, unknown = (
        [s for s, v in told.items() if v is verdict] for verdict in (True, False, None)
    )
    if not yes and not no:
        return WORDS[None]
    parts = [
        percent(max(yes)) if yes else "none",
        f"first fails at {percent(min(no))}" if no else "fails nowhere",
    ]
    return "; ".join(
        parts + ([f"cannot be told at {', '.join(map(percent, unknown))}"] if unknown else [])
    )


def registered(study: StudyResults, delta: float) -> list[Registration]:
    """Per task and rule, the verdict in words and the ticket of the highest sparsity that matches, or None.

    It is the ticket of the first seed: all of them were compared, and none is picked by its score.
    """
    made = []
    for task, rule in product(study.tasks, RULES):
        full = study.group(task).scores
        every = {
            sparsity: verdicts(study.group(task, sparsity).scores, full, delta)
            for sparsity in study.own(task)
        }
        told = {
            sparsity: each
            for sparsity, found in every.items()
            for each in found
            if each.rule == rule
        }
        best = max(
            (sparsity for sparsity, verdict in told.items() if verdict.matches), default=None
        )
        text, tickets = "", []
        if best is not None:
            v, all_told = (
                told[best],
                {sparsity: verdict.matches for sparsity, verdict in told.items()},
            )
            test = "" if v.p is None else f", δ = {delta:g}{tested('p', v.p)} uncorrected"
            text = f"{_range(all_told)} ({v.sub:.1f} against {v.full:.1f}{test})"
            mine = sorted(
                (s for s in study.searches if s.task == task), key=lambda search: search.seed
            )
            tickets = [
                (s.seed, p) for s in mine for at, p in s.tickets.items() if abs(at - best) <= CLOSE
            ]
        seed, ticket = next(((seed, path) for seed, path in tickets if path.is_file()), (0, None))
        made.append(Registration(task, study.model, rule, text, ticket, seed))
    return made


def curves(study: StudyResults, tasks: Sequence[str]) -> Section:
    """Score against sparsity, a panel a task."""
    text, panels, rows = [CURVES], {}, []
    columns = sorted({round(100 * s, 6) for task in tasks for s in (0.0, *study.own(task))})
    for task in tasks:
        lines: dict[str, dict[float, list[float]]] = {control: {} for control in CONTROLS}
        mine = [
            cell for cell in study.cells if cell.task == cell.source == task and cell.rewind == "0"
        ]
        for control, sparsity in sorted({(cell.control, cell.sparsity) for cell in mine}):
            lines[control][round(100 * sparsity, 6)] = list(
                study.group(task, sparsity, control).scores.values()
            )
        missing = [
            f"{CONTROLS[c].label} {x:.4g} %"
            for c, line in lines.items()
            for x in line
            if not line[x]
        ]
        text += [f"{task}: missing: {', '.join(missing)}."] if missing else []
        rows += by_sparsity(study, task, lines, columns)
        panels[f"{task}, {study.metric(task)} (points)"] = (lines, lines["none"][0.0])
    table = Table("Scores by sparsity", ["task", "network", *map("{:.4g} %".format, columns)], rows)
    picture = figures.scores(panels, figures.SPARSITY, study.title("Score against sparsity"))
    return Section(
        "Score against sparsity", text, [table], {"scores.png": ("score against sparsity", picture)}
    )


def by_sparsity(
    study: StudyResults, task: str, lines: figures.Lines, columns: Sequence[float]
) -> list[list[str]]:
    """A row a network of a task: mean ± sd and n at each sparsity in percent."""
    return [
        [
            task,
            CONTROLS[control].label,
            *(str(study.group(task, x / 100, control if x else "none")) for x in columns),
        ]
        for control, line in lines.items()
        if line
    ]


def transfer(study: StudyResults, sparsity: float) -> Section:
    """The paper's Figure 2: each ticket on each task, minus the full network."""
    across = [c for c in study.cells if c.sparsity == sparsity and c.kind == OTHER]
    columns = [task for task in study.tasks if any(c.task == task for c in across)]
    groups = {(s, t): study.group(t, sparsity, source=s) for s in TASKS for t in columns}
    groups |= {(THETA, t): study.group(t, sparsity, "one_shot") for t in columns}
    planned = {pair: group for pair, group in groups.items() if group.planned}
    rows = [
        s
        for s in dict.fromkeys(s for s, _ in planned)
        if s == THETA or any(c.source == s for c in across)
    ]
    here = transfer_grid(
        {(s, t): group - study.group(t) for (s, t), group in planned.items()}, rows, columns
    )
    n = sorted(
        {len(group.scores) for (s, _), group in planned.items() if s in rows and group.scores}
    ) or [0]
    text = (
        f"Mean score of the transferred ticket minus that of the full network, n = {' or '.join(map(str, n))} (each in "
        f"the last section). Dark, ●: {paper()['definitions']['figure2_dark_cell']['value']}; that compares means, no "
        "test. Rows are sources, whose ticket it is; columns are targets, the tasks trained."
    )
    section, grids = (
        Section(f"Transfer at {percent(sparsity)} (the paper's Figure 2)", [text]),
        {"here": here},
    )
    name, title = f"transfer_{100 * sparsity:.3g}.png", study.title(percent(sparsity))
    add_grid(
        section, here, "Transfer − full network, points", name, title, span=SHADES, cmap="Blues_r"
    )
    if abs(sparsity - 0.7) <= CLOSE:
        theirs = {(s, t): v for s, row in figure2().items() for t, v in row["value"].items()}
        grids["paper"] = transfer_grid(theirs, rows, columns)
        section.text.append(sources(figure2().values()))
        heading, title = (
            "The same cells in the paper (n = 3), points",
            "the paper's Figure 2, the same cells",
        )
        add_grid(
            section,
            grids["paper"],
            heading,
            "transfer_paper.png",
            title,
            span=SHADES,
            cmap="Blues_r",
        )
    dark = [
        Counter(s for (s, _), (_, text) in grid.cells.items() if "●" in text)
        for grid in grids.values()
    ]
    counts = [[source, *(str(count[source]) for count in dark)] for source in rows]
    section.tables.append(
        Table("Dark cells of each source, its own task not counted", ["source", *grids], counts)
    )
    return section


def transfer_grid(
    values: Mapping[tuple[str, str], float], rows: list[str], columns: list[str]
) -> figures.Grid:
    """Those rows and columns; dark as in the paper's Figure 2 is what is at least the target's own ticket."""
    cells = {}
    for source, target in product(rows, columns):
        value, own = (values.get((s, target), math.nan) for s in (source, target))
        dark = source != target and bool(at_least(value, own))
        if (source, target) in values:
            shade = math.nan if math.isnan(value) else SHADES[not dark]
            cells[source, target] = (shade, signed(value) + " ●" * dark)
    return figures.Grid(rows, columns, cells)


def add_grid(
    section: Section, grid: figures.Grid, heading: str, name: str, title: str, **look: Any
) -> None:
    """Add a grid as a table and as a picture."""
    rows = [
        [row, *(grid.cells.get((row, column), (0, "—"))[1] for column in grid.columns)]
        for row in grid.rows
    ]
    section.tables.append(Table(heading, ["", *grid.columns], rows))
    section.pictures[name] = (heading, figures.heat_maps({"": grid}, title, **look))


def rewinding(study: StudyResults, tasks: Sequence[str], delta: float) -> Section:
    """Scores by rewind point, each compared with rewinding to θ₀."""
    points = sorted(
        {"0", *(c.rewind for c in study.cells)}, key=lambda r: math.inf if r == "none" else float(r)
    )
    names = {point: rewind_name(point) for point in points}
    rows, entries, panels = [], [], {}
    for task in tasks:
        sparsity, words = at_paper(task, study.own(task, rewound=True))
        full, groups = study.group(task), {r: study.group(task, sparsity, rewind=r) for r in points}
        rows.append([task, words, str(full), *map(str, groups.values())])
        entries += [
            ([task, percent(sparsity), names[r]], groups[r], groups["0"])
            for r in points
            if r != "0"
        ]
        scores = {names[r]: list(group.scores.values()) for r, group in groups.items()}
        panels[f"{task}, {percent(sparsity)} (points)"] = (
            {"none": scores},
            list(full.scores.values()),
        )
    text = "The ticket trained from θᵢ, i as a part of a round's steps; standard pruning rewinds nothing."
    labels, question = ["task", "sparsity", "rewind"], "Is it as good as rewinding to θ₀?"
    table = Table(
        "Scores by rewind point", ["task", "sparsity", "full network", *names.values()], rows
    )
    tables = [table, verdict_table(question, labels, entries, delta)]
    picture = figures.scores(panels, "rewind point", study.title("Rewinding"))
    return Section(
        "Rewinding", [text], tables, {"rewinding.png": ("score by rewind point", picture)}
    )


def rewind_name(point: str) -> str:
    """`θ₀`, `5 %`, `100 steps` or `standard pruning`."""
    named = {"0": "θ₀", "none": "standard pruning"}
    return named.get(point) or (percent(float(point)) if float(point) < 1 else f"{point} steps")


def masks(study: StudyResults) -> list[Section]:
    """What the masks look like: sparsity by layer, and how much two tasks' tickets share."""
    facts = study.kept or mask_facts(study)
    sparsity, layers = (
        facts["sparsity"],
        {task: list(seeds.values()) for task, seeds in facts["layers"].items()},
    )
    made = [by_layer(study, sparsity, layers)]
    shared = {
        frozenset(pair.split()): list(seeds.values()) for pair, seeds in facts["shared"].items()
    }
    return [*made, overlap(study, sparsity, list(layers), shared)] if len(layers) > 1 else made


def mask_facts(study: StudyResults) -> dict[str, Any]:
    """At which sparsity; by task and seed the sparsity by matrix; by two tasks (`mlm sst2`) and seed their overlap.

    At the transfer's sparsity, or the one most tasks plan; of several that nearest 70 %. Tickets of bases with other
    weights have no overlap.
    """
    from lth_scale.pruning.ticket import Ticket  # imports torch

    own = [s for task in study.tasks for s in study.own(task)]
    sparsity = min(study.transferred() or own, key=lambda s: (-own.count(s), abs(s - 0.7)))
    planned = {search.task for search in study.searches if search.target >= sparsity - CLOSE}
    layers: dict[str, dict[str, dict[str, float]]] = {task: {} for task in TASKS if task in planned}
    shared: dict[str, dict[str, float]] = defaultdict(dict)
    near = [
        (x, path)
        for x in study.searches
        for at, path in x.tickets.items()
        if abs(at - sparsity) <= CLOSE
    ]
    found = [(search, path) for search, path in near if path.is_file()]
    for seed in sorted({search.seed for search, _ in found}):  # one seed's at a time in memory
        loaded = {search.task: Ticket.load(path) for search, path in found if search.seed == seed}
        for task, ticket in loaded.items():
            layers[task][str(seed)] = ticket.layer_sparsity()
        for a, b in combinations(loaded, 2):
            if loaded[a].is_of_other_weights(loaded[b].base_sha256):
                log.warning(
                    "the tickets of %s and %s belong to other weights: their overlap is left out",
                    a,
                    b,
                )
                continue
            if not math.isnan(
                share := loaded[a].overlap(loaded[b])["all"]
            ):  # of a ticket that keeps nothing
                shared[f"{a} {b}"][str(seed)] = share
    return {"sparsity": sparsity, "layers": layers, "shared": shared}


def by_layer(
    study: StudyResults, sparsity: float, layers: Mapping[str, list[dict[str, float]]]
) -> Section:
    """A heat map of layers × kinds of matrices a task, and a table of the means by kind."""
    places = {
        name: _place(name) for known in layers.values() for ticket in known for name in ticket
    }
    depth, kinds = (list(dict.fromkeys(place[i] for place in places.values())) for i in (0, 1))
    panels, rows = {}, []
    for task, known in layers.items():
        mine = {name: place for name, place in places.items() if not known or name in known[0]}
        cells = {place: _mean([ticket[name] for ticket in known]) for name, place in mine.items()}
        panels[f"{task} (n = {len(known)})"] = figures.Grid(depth, kinds, cells)
        by_kind = [
            [ticket[name] for ticket in known for name in mine if mine[name][1] == kind]
            for kind in kinds
        ]
        rows.append(
            [task, str(len(known)), *("—" if known and not v else _mean(v)[1] for v in by_kind)]
        )
    absent = ", ".join(task for task, known in layers.items() if not known)
    text = "Pruned weights in percent, mean over the seeds' tickets. Rows of the figure are layers."
    text += f" Missing tickets: {absent}." if absent else ""
    table = Table("Mean over the layers, percent pruned", ["task", "n", *kinds], rows)
    section = Section(f"Sparsity by layer at {percent(sparsity)}", [text], [table])
    if places:
        png = figures.heat_maps(panels, study.title("Sparsity by layer"), "pruned (%)")
        section.pictures["layers.png"] = ("sparsity by layer and kind of matrix", png)
    return section


def _place(name: str) -> tuple[str, str]:
    """('3', 'Q') of a parameter in layer 3; ('', its name) of one outside the layers."""
    found = re.fullmatch(r"(?:.*?\.(\d+)\.)?(.+)\.weight", name)
    return (found[1] or "", KINDS.get(found[2], found[2])) if found else ("", name)


def _mean(fractions: Sequence[float]) -> tuple[float, str]:
    """In percent, as a number and as text."""
    mean = 100 * fmean(fractions) if fractions else math.nan
    return mean, "missing" if math.isnan(mean) else f"{mean:.1f}"


def overlap(
    study: StudyResults,
    sparsity: float,
    tasks: list[str],
    shared: Mapping[frozenset[str], list[float]],
) -> Section:
    """The matrix of shared kept weights, as figure and table."""
    chance = percent(1 - sparsity)
    text = (
        "Kept weights of one task's ticket that the other's keeps too, in percent, mean over pairs of one seed. "
        f"Two random masks of this sparsity share {chance}. Hatched: missing, or a task with itself."
    )
    section = Section(f"Overlap of tickets at {percent(sparsity)}", [text])
    cells = {
        (a, b): _mean(shared.get(frozenset((a, b)), [])) for a in tasks for b in tasks if a != b
    }
    grid, heading = figures.Grid(tasks, tasks, cells), "Shared kept weights, percent"
    title, span = study.title(f"Overlap of tickets, chance {chance}"), (100 * (1 - sparsity), 100.0)
    add_grid(section, grid, heading, "overlap.png", title, label="shared (%)", span=span)
    return section


def every_verdict(study: StudyResults, delta: float) -> Section:
    """Each ticket against the full network; the metrics beside the tasks' own, at Table 2's sparsity."""
    found = {(c.task, c.source, c.sparsity) for c in study.cells if c.kind in (OWN, OTHER)}
    keys = sorted(found, key=lambda k: (study.tasks.index(k[0]), k[1] != k[0], k))
    entries = [
        ([t, source, percent(s)], study.group(t, s, source=source), study.group(t))
        for t, source, s in keys
    ]
    labels, title = ["task", "ticket of", "sparsity"], "Verdicts on all tickets, p uncorrected"
    tables = [verdict_table(title, labels, entries, delta, adjust=False)]
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    at_table = {
        task: at_paper(task, study.compared(task))[0] for task in study.tasks if study.own(task)
    }
    for cell in study.cells:
        if (
            cell.sparsity in (0, at_table.get(cell.task))
            and cell.source == cell.task
            and cell.rewind == "0"
        ):
            for name, value in list(cell.evals.items())[1:]:
                values[cell.task, cell.kind, percent(cell.sparsity), name].append(value)
    rows = [
        [*key, format(summary(v), ".3f" if key[3] in UNSCALED else ".1f")]
        for key, v in sorted(values.items())
    ]
    tables.append(
        Table("Other metrics", ["task", "network", "sparsity", "metric", "mean ± sd"], rows)
    )
    return Section("Every verdict", [], tables if rows else tables[:1])


def signed(points: float) -> str:
    """`+0.14`, `−1.20`, `0.00`; NaN is missing."""
    text = f"{points:+.2f}".replace("-", "−") if round(points, 2) else "0.00"
    return "missing" if math.isnan(points) else text
