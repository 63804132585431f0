"""A study as one page: what was planned, the tables and figures of the paper beside its own numbers, and verdicts.

`python -m lth_scale.report DIR` reads DIR/study.json and the results of the jobs that it names, nothing else.
Scores are in percent points.
"""

import argparse
import base64
import html
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale import figures, files
from lth_scale.arguments import CONTROLS, TASKS, BadInput, OneLineParser, exit_on_bad_input
from lth_scale.matching import RULES, WORDS, Summary, at_least, holm, judge, summary, verdicts

if TYPE_CHECKING:
    from lth_scale.ticket import Ticket

CLOSE = 5e-4  # a row's sparsity is that of a cell: patterns and whole weights round
UNSCALED = ("loss", "perplexity")  # metrics that are no fractions
THETA = "θ₀ pruned"
KINDS = {
    "attention.self.query": "Q",
    "attention.self.key": "K",
    "attention.self.value": "V",
    "attention.output.dense": "attn. out",
    "intermediate.dense": "FFN in",
    "output.dense": "FFN out",
}


@cache
def paper() -> dict[str, Any]:
    """The numbers of Chen et al. 2020 with the source of each and how it was verified; units are percent points."""
    return json.loads(Path(__file__).with_name("paper.json").read_text())


@dataclass(frozen=True)
class Cell:
    """One training that the study planned. evals (percent points, the task's metric first) is empty while missing."""

    task: str
    seed: int
    sparsity: float
    control: str
    source: str | None
    rewind: str
    job: str
    evals: Mapping[str, float]
    ticket: Path | None

    @property
    def kind(self) -> str:
        """What the summary counts it as."""
        if self.sparsity == 0:
            return "full network"
        if self.rewind != "0":
            return "rewinding and standard pruning"
        if self.control != "none":
            return figures.LABELS.get(self.control, self.control)
        return "tickets on their own task" if self.source == self.task else "tickets on other tasks"


@dataclass(frozen=True)
class Group:
    """The cells that differ in nothing but the seed: how many are planned, and the score of each seed that is there."""

    planned: int = 0
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def summary(self) -> Summary:
        """Over the seeds that are there."""
        return summary(self.scores)

    def __str__(self) -> str:
        text = str(self.summary) if self.planned else "—"
        return text.replace(")", f" of {self.planned})") if 0 < len(self.scores) < self.planned else text


@dataclass(frozen=True)
class Study:
    """A study's plan and the results that are there. finished: job → whether it is complete."""

    directory: Path
    name: str
    note: str
    model: str
    tasks: list[str]
    finished: dict[str, bool]
    cells: list[Cell]

    def group(self, keep: Callable[[Cell], bool]) -> Group:
        """The cells that `keep` wants, by seed; of two with one seed the first that has a score."""
        wanted = [cell for cell in self.cells if keep(cell)]
        found = {cell.seed: next(iter(cell.evals.values())) for cell in reversed(wanted) if cell.evals}
        return Group(len({cell.seed for cell in wanted}), dict(sorted(found.items())))

    def full(self, task: str) -> Group:
        """The dense network on a task."""
        return self.group(lambda c: c.task == task and c.sparsity == 0)

    def ticket(self, task: str, sparsity: float, source: str | None = None, rewind: str = "0") -> Group:
        """The ticket of `source` (default: the task's own) trained on `task`."""
        key = (task, sparsity, "none", source or task, rewind)
        return self.group(lambda c: (c.task, c.sparsity, c.control, c.source, c.rewind) == key)

    def control(self, task: str, sparsity: float, control: str) -> Group:
        """A control of the task's own ticket."""
        key = (task, sparsity, control)
        return self.group(lambda c: (c.task, c.sparsity, c.control) == key and c.source in (task, None))

    def own(self, task: str, rewound: bool = False) -> list[float]:
        """The sparsities at which the task's own ticket is planned; `rewound`: from another point than θ₀."""
        mine = [c for c in self.cells if c.task == c.source == task and c.control == "none" and c.sparsity]
        return sorted({c.sparsity for c in mine if (c.rewind != "0") == rewound})

    def metric(self, task: str) -> str:
        """The name of the task's metric, where a result says it."""
        return next((next(iter(c.evals)) for c in self.cells if c.task == task and c.evals), "score")

    @property
    def short_model(self) -> str:
        """The model's name without its owner."""
        return self.model.rstrip("/").split("/")[-1]

    def title(self, text: str) -> str:
        """A figure's title, with the note of the study."""
        return f"{text}\n{self.note}" if self.note else text


@dataclass(frozen=True)
class Table:
    """Text in rows; the same for Markdown and HTML."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """A heading and what is below it; pictures are PNG by file name, with what they show."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def load(directory: str | Path) -> Study:
    """The plan and the results below `directory`. Raises BadInput where study.json or a results.json is damaged."""
    path = Path(directory) / "study.json"
    if not path.is_file():
        raise BadInput(f"{directory}: no study lies there (study.json is missing); give the directory of a study")
    plan = _read(path)
    try:
        jobs = {job["id"]: (job["kind"], Path(directory) / job["directory"]) for job in plan["jobs"]}
        rows = {job: _rows(place / "results.json") for job, (_, place) in jobs.items()}
        cells = [_cell(spec, *jobs[spec["job"]], rows[spec["job"]]) for spec in plan["cells"]]
        finished = {job: (place / "complete").exists() for job, (_, place) in jobs.items()}
        head = (plan["name"], plan["note"], plan["model"], [task for task in plan["tasks"] if printed(task)])
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise BadInput(f"{path}: damaged, or not a study ({problem!r}); give the directory of a study") from None
    return Study(Path(directory), *head, finished, cells)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise BadInput(f"{path}: cannot be read ({problem}); run its job again, or give another directory") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = _read(path) if path.is_file() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("eval") for row in rows):
        raise BadInput(f"{path}: damaged, or no table of results; run its job again")
    return rows


def _cell(spec: Mapping[str, Any], kind: str, place: Path, rows: list[dict[str, Any]]) -> Cell:
    def away(row: Mapping[str, Any]) -> float:
        return abs(row[key] - spec[key])

    key = "sparsity" if kind == "imp" else "seed"
    names = ("task", "seed", "sparsity", "control", "source", "rewind", "job")
    plan = {name: spec[name] for name in names}
    row = min(rows, key=away, default=None)
    if row is None or not away(row) <= CLOSE:
        return Cell(**plan, evals={}, ticket=None)
    evals = {name: value if name in UNSCALED else 100 * value for name, value in row["eval"].items()}
    path = place / "rounds" / f"{row['round']:02d}" / "ticket.safetensors" if kind == "imp" else None
    return Cell(**plan, evals=evals, ticket=path if path and path.is_file() else None)


def sections(study: Study, delta: float) -> list[Section]:
    """Those parts of the report that the study planned; `delta` is in percent points."""
    made = [summarise(study)]
    tasks = [task for task in study.tasks if study.own(task)]
    if tasks:
        made += [table2(study, tasks, delta), curves(study, tasks)]
    made += [transfer(study, sparsity) for sparsity in transferred(study)]
    if any(study.own(task, rewound=True) for task in study.tasks):
        made.append(rewinding(study, delta))
    if tasks:
        made += [*tickets(study, common_sparsity(study)), every_verdict(study, delta)]
    return made


def summarise(study: Study) -> Section:
    """What was planned and what is there."""
    done, seeds = sum(study.finished.values()), sorted({cell.seed for cell in study.cells})
    text = [
        f"Model: {study.model}. Tasks: {', '.join(study.tasks)}. Scores are in percent points; ± is one standard "
        f"deviation over seeds (n − 1 in the denominator), n the number of seeds. The paper is {paper()['paper']}.",
        f"Jobs: {len(study.finished)} planned, {done} finished, {len(study.finished) - done} not finished. "
        f"Seeds: {len(seeds)} ({', '.join(map(str, seeds))}).",
    ]
    text += ["With one seed there is no spread: a rule that needs one says “cannot be told”."] if len(seeds) < 2 else []
    text += [WNLI] if "wnli" in study.tasks else []
    kinds = {cell.kind: [c for c in study.cells if c.kind == cell.kind] for cell in study.cells} | {"all": study.cells}
    counts = {kind: (len(cells), sum(bool(c.evals) for c in cells)) for kind, cells in kinds.items()}
    rows = [[kind, str(planned), str(there), str(planned - there)] for kind, (planned, there) in counts.items()]
    tables = [Table("Trainings", ["what", "planned", "there", "missing"], rows)]
    unfinished = [[job] for job, finished in study.finished.items() if not finished]
    tables += [Table("Jobs not finished", ["job"], unfinished)] if unfinished else []
    return Section("Summary", text, tables)


def printed(task: str) -> dict[str, float]:
    """The paper's row of Table 2 (percent points), and its Table 4 as `strict`. Raises KeyError for another task."""
    row = {name: column["value"][task] for name, column in paper()["table2"].items()}
    return row | {"strict": paper()["table4_strict_sparsity"][task]["value"]}


def at_paper(task: str, grid: Sequence[float]) -> tuple[float, str]:
    """The paper's sparsity of Table 2 if it is in the grid, else the nearest lower one; and that in words."""
    theirs = printed(task)["sparsity"] / 100
    lower = [s for s in grid if s <= theirs + CLOSE]
    chosen = max(lower) if lower else min(grid)
    differs = abs(chosen - theirs) > CLOSE
    return chosen, percent(chosen) + f" (the {'next lower' if lower else 'lowest'} planned)" * differs


def table2(study: Study, tasks: Sequence[str], delta: float) -> Section:
    """The paper's Table 2 and the verdicts on its tickets."""
    planned = {c.control for c in study.cells if c.sparsity} | set(COLUMNS)
    controls = [control for control in CONTROLS if control in planned]
    rows, entries = [], []
    for task in tasks:
        sparsity, words = at_paper(task, study.own(task))
        ours = [study.full(task), study.ticket(task, sparsity), *(study.control(task, sparsity, c) for c in controls)]
        rows += [[task, "here", study.metric(task), words, *map(str, ours)], paper_row(task, controls)]
        entries.append(([task, percent(sparsity)], ours[1], ours[0]))
    names = [COLUMNS[c][0] if c in COLUMNS else figures.LABELS[c] for c in controls]
    header = ["task", "", "metric", "sparsity", "full f(θ₀)", "f(m_IMP, θ₀)", *names]
    tables = [
        Table("Scores", header, rows),
        verdict_table("Is the ticket matching the full network?", ["task", "sparsity"], entries, delta, adjust=True),
        highest(study, tasks, delta),
    ]
    text = [sources([*paper()["table2"].values(), *paper()["table4_strict_sparsity"].values()]), RULE_TEXT]
    return Section("The tickets and their controls (the paper's Table 2)", text, tables)


def paper_row(task: str, controls: Sequence[str]) -> list[str]:
    """The paper's Table 2 for a task, in the columns of ours."""
    row, metric = printed(task), paper()["hyperparameters"][task]["metric"]["value"]
    full, ticket = (
        f"{row[f'{key}_mean']:g} ± {row[f'{key}_std']:g} (n = 5)" for key in ("full_bert", "f(m_IMP,theta0)")
    )
    keys = [COLUMNS.get(control, ("", ""))[1] for control in controls]
    return ["", "paper", metric, f"{row['sparsity']} %", full, ticket, *(f"{row[k]:g}" if k else "—" for k in keys)]


COLUMNS = {  # control → its heading, and its name in paper.json
    "random_mask": ("f(m_RP, θ₀)", "f(m_RP,theta0)"),
    "reinit": ("f(m_IMP, θ₀′)", "f(m_IMP,theta0')"),
    "shuffle_layers": ("f(m_IMP, θ₀″), layers shuffled, as the paper's code", "f(m_IMP,theta0'')"),
    "shuffle_within": ("f(m_IMP, θ₀″), shuffled within, as its text", ""),
}
WNLI = (
    "WNLI is at chance by design (its validation sentences contradict its training ones): no comparison on it means "
    "anything."
)
RULE_TEXT = (
    "Rules: strict: mean ≥ full mean; within_sd_full: mean ≥ full mean − its sd; within_sd_max: the larger of the two "
    "sds instead (the paper's own Table 2 needs it for MRPC, SST-2, CoLA and MLM); welch: a one-sided test of “worse "
    "by more than δ”, which matches where p ≥ 0.05; paired: the same by seed. A test with few seeds seldom finds a "
    "loss, so a match by welch or paired says only that no loss beyond δ was shown; after"
    " Holm's correction a loss is found more seldom still."
)

Entry = tuple[list[str], Group, Group]


def verdict_table(title: str, labels: list[str], entries: Sequence[Entry], delta: float, adjust: bool) -> Table:
    """A row an entry (labels, subnetwork, full network): each rule's verdict, with δ, p and n.

    `adjust` applies Holm's correction to welch's p over all entries.
    """
    told = [{v.rule: v for v in verdicts(sub.scores, full.scores, delta)} for _, sub, full in entries]
    welch = [v["welch"].p for v in told]
    rows = []
    for (names, sub, full), by_rule, p in zip(entries, told, holm(welch) if adjust else welch, strict=True):
        texts = [by_rule[rule].words for rule in RULES[:3]]
        pair = by_rule["paired"]
        texts.append(tested(judge(p), by_rule["welch"].p, f", Holm {number(p)}" if adjust else ""))
        texts.append(tested(pair.matches, pair.p, f", n = {pair.n_sub} pairs"))
        rows.append([*names, str(sub), str(full), difference(sub, full), *texts])
    counted = f", Holm over {sum(p is not None for p in welch)}" if adjust else ""
    tests = [f"welch, δ = {delta:g}{counted}", f"paired, δ = {delta:g}"]
    return Table(title, [*labels, "subnetwork", "compared with", "difference", *RULES[:3], *tests], rows)


def tested(matches: bool | None, p: float | None, more: str) -> str:
    """The verdict of a test, with its p and `more`."""
    return WORDS[matches] + (f", p {number(p)}{more}" if p is not None else "")


def highest(study: Study, tasks: Sequence[str], delta: float) -> Table:
    """Per task and rule, the largest sparsity at which the rule holds and the least at which it does not."""
    rows = []
    for task in tasks:
        told: dict[str, dict[float, bool | None]] = {rule: {} for rule in RULES}
        for sparsity in study.own(task):
            for v in verdicts(study.ticket(task, sparsity).scores, study.full(task).scores, delta):
                told[v.rule][sparsity] = v.matches
        theirs = [f"{printed(task)[name]} %" for name in ("sparsity", "strict")]
        rows.append([task, *map(_range, told.values()), *theirs])
    tests = [f"{rule}, δ = {delta:g}, p uncorrected" for rule in RULES[3:]]
    header = ["task", *RULES[:3], *tests, "paper, Table 2 (within sd)", "paper, Table 4 (strict)"]
    return Table("Highest sparsity that matches (n and p of each are in the last section)", header, rows)


def _range(told: Mapping[float, bool | None]) -> str:
    by = {verdict: [s for s, v in told.items() if v is verdict] for verdict in (True, False, None)}
    if not by[True] and not by[False]:
        return WORDS[None]
    parts = [percent(max(by[True])) if by[True] else "none"]
    parts.append(f"first fails at {percent(min(by[False]))}" if by[False] else "fails nowhere")
    parts += [f"cannot be told at {', '.join(map(percent, by[None]))}"] if by[None] else []
    return "; ".join(parts)


def curves(study: Study, tasks: Sequence[str]) -> Section:
    """Score against sparsity, a figure a task."""
    section = Section("Score against sparsity", [CURVES])
    for task in tasks:
        lines = {"none": {0.0: study.full(task)} | {s: study.ticket(task, s) for s in study.own(task)}}
        for control in CONTROLS:
            planned = sorted({c.sparsity for c in study.cells if (c.task, c.control) == (task, control)})
            lines[control] = {s: study.control(task, s, control) for s in planned}
        scores = {c: {100 * s: list(g.scores.values()) for s, g in line.items()} for c, line in lines.items()}
        missing = [f"{figures.LABELS[c]} {x:.4g} %" for c, line in scores.items() for x in line if not line[x]]
        section.text += [f"{task}: missing: {', '.join(missing)}."] if missing else []
        title = study.title(f"{task}, {study.short_model}")
        png = figures.scores_over_seeds(scores, scores["none"][0.0], study.metric(task), title)
        section.pictures[f"scores_{task}.png"] = (f"{task}: score against sparsity", png)
    return section


CURVES = (
    "Points are means over seeds; bars, and the grey band of the full network, reach from the least to the greatest "
    "seed. The numbers are in the last section."
)


def transferred(study: Study) -> list[float]:
    """The sparsities at which a ticket is trained on another task than its own."""
    return sorted({c.sparsity for c in study.cells if c.kind == "tickets on other tasks"})


@dataclass(frozen=True)
class Matrix:
    """Transfer minus full network. Text None is missing, "" was not planned; dark as in the paper's Figure 2."""

    rows: list[str]
    columns: list[str]
    texts: list[list[str | None]]
    dark: list[list[bool]]

    def table(self, title: str) -> Table:
        """The matrix as text, a dark cell with ●."""
        said = [["missing" if t is None else t or "—" for t in row] for row in self.texts]
        marked = [[t + " ●" * d for t, d in zip(*pair, strict=True)] for pair in zip(said, self.dark, strict=True)]
        rows = [[name, *row] for name, row in zip(self.rows, marked, strict=True)]
        return Table(title, ["source ↓ target →", *self.columns], rows)

    def picture(self, title: str) -> bytes:
        """The matrix as PNG."""
        return figures.transfer_matrix(self.texts, self.dark, self.rows, self.columns, title)


def matrix_here(study: Study, sparsity: float) -> tuple[Matrix, str]:
    """The study's matrix at one sparsity, and its n in words."""
    cells = [c for c in study.cells if c.sparsity == sparsity and c.rewind == "0"]
    across = [c for c in cells if c.kind == "tickets on other tasks"]
    rows = [t for t in TASKS if any(c.source == t for c in across)]
    columns = [t for t in study.tasks if any(c.task == t for c in across)]
    one_shot = [THETA] if any(c.control == "one_shot" for c in cells) else []
    groups = [[study.ticket(t, sparsity, s) for t in columns] for s in rows]
    groups += [[study.control(t, sparsity, "one_shot") for t in columns] for _ in one_shot]
    counts = sorted({len(g.scores) for row in groups for g in row if g.scores})
    texts = [[_gain(g, study.full(t), len(counts) > 1) for g, t in zip(row, columns, strict=True)] for row in groups]
    own = {t: study.ticket(t, sparsity).summary.mean for t in columns}
    dark = [
        [t != name and text not in (None, "") and bool(at_least(g.summary.mean, own[t]))
         for g, t, text in zip(row, columns, line, strict=True)]
        for name, row, line in zip([*rows, *one_shot], groups, texts, strict=True)
    ]  # fmt: skip
    n = "varies and is in each cell" if len(counts) > 1 else f"= {counts[0]} in every cell" if counts else "= 0"
    return Matrix([*rows, *one_shot], columns, texts, dark), f"n {n}"


def _gain(group: Group, full: Group, with_n: bool) -> str | None:
    if not group.planned:
        return ""
    if not group.scores or not full.scores:
        return None
    return difference(group, full) + (f" (n = {len(group.scores)})" if with_n else "")


def matrix_paper(rows: Sequence[str], columns: Sequence[str]) -> Matrix:
    """The paper's Figure 2, those rows and columns of it."""
    figure = {key: row["value"] for key, row in paper()["figure2_transfer_70pct_minus_full"].items()}
    values = [[figure[_key(name)][target] for target in columns] for name in rows]
    own = [figure[target][target] for target in columns]
    dark = [[name != t and v >= o for t, v, o in zip(columns, row, own, strict=True)]
            for name, row in zip(rows, values, strict=True)]  # fmt: skip
    return Matrix(list(rows), list(columns), [[signed(v) for v in row] for row in values], dark)


def _key(source: str) -> str:
    return "one_shot" if source == THETA else source


def transfer(study: Study, sparsity: float) -> Section:
    """The paper's Figure 2: each ticket on each task, minus the full network."""
    here, n = matrix_here(study, sparsity)
    rule = paper()["definitions"]["figure2_dark_cell"]
    section = Section(f"Transfer at {percent(sparsity)} (the paper's Figure 2)")
    section.text = [
        f"Mean score of the transferred ticket minus that of the full network, {n} (the full networks' n is above). "
        f"Dark, framed and bold in the figure, ● in the table: {rule['value']}. Dashed frame: a task's own ticket. "
        "Dark compares two means and is no test.",
    ]
    section.tables = [here.table("Transfer − full network, points")]
    name = f"transfer_{100 * sparsity:.3g}.png"
    picture = here.picture(study.title(f"{study.short_model} at {percent(sparsity)}"))
    section.pictures[name] = ("transfer, this study", picture)
    theirs = None
    if abs(sparsity - 0.7) <= CLOSE:
        theirs = matrix_paper(here.rows, here.columns)
        section.text.append(f"{sources(paper()['figure2_transfer_70pct_minus_full'].values())} {TIE}")
        section.tables.append(theirs.table("The same cells in the paper (n = 3), points"))
        picture = theirs.picture("the paper's Figure 2, the same cells")
        section.pictures["transfer_paper.png"] = ("transfer, the paper", picture)
    section.tables.append(dark_counts(here, theirs))
    return section


TIE = (
    "“These targets” counts its printed numbers, “all targets” is its own count; they differ by one for θ₀ pruned, "
    "which ties with squad's own ticket at two decimals."
)


def dark_counts(here: Matrix, theirs: Matrix | None) -> Table:
    """How many tasks a source serves at least as well as their own tickets do, itself not counted."""
    figure, rows = paper()["figure2_transfer_70pct_minus_full"], []
    for i, name in enumerate(here.rows):
        told = [t for t, target in zip(here.texts[i], here.columns, strict=True) if t and target != name]
        row = [name, f"{sum(here.dark[i])} of {len(told)} told"]
        if theirs:
            row += [str(sum(theirs.dark[i])), str(figure[_key(name)]["count_at_least_same_task"])]
        rows.append(row)
    header = ["source", "here", *(["paper, these targets", "paper, all targets"] if theirs else [])]
    return Table("Dark cells of each source, its own task not counted", header, rows)


def rewinding(study: Study, delta: float) -> Section:
    """Scores by rewind point, each compared with rewinding to θ₀."""
    points = sorted({"0", *(c.rewind for c in study.cells)}, key=lambda r: math.inf if r == "none" else float(r))
    rows, entries, panels, full = [], [], {}, {}
    for task in study.tasks:
        if not study.own(task, rewound=True):
            continue
        sparsity, words = at_paper(task, study.own(task, rewound=True))
        groups = {r: study.ticket(task, sparsity, rewind=r) for r in points}
        rows.append([task, words, str(study.full(task)), *map(str, groups.values())])
        entries += [([task, percent(sparsity), rewind_name(r)], g, groups["0"]) for r, g in groups.items() if r != "0"]
        panels[f"{task}, {percent(sparsity)}"] = {rewind_name(r): list(g.scores.values()) for r, g in groups.items()}
        full[f"{task}, {percent(sparsity)}"] = list(study.full(task).scores.values())
    text = (
        "The ticket trained from θᵢ, i as a part of a round's steps; standard pruning rewinds nothing. "
        "Verdicts compare each with rewinding to θ₀."
    )
    section = Section("Rewinding", [text])
    names = [rewind_name(r) for r in points]
    section.tables = [
        Table("Scores", ["task", "sparsity", "full network", *names], rows),
        verdict_table("Is it as good as rewinding to θ₀?", ["task", "sparsity", "rewind"], entries, delta, adjust=True),
    ]
    picture = figures.rewinding(panels, full, study.title(f"Rewinding, {study.short_model}"))
    section.pictures["rewinding.png"] = ("score by rewind point", picture)
    return section


def rewind_name(point: str) -> str:
    """`θ₀`, `5 %`, `100 steps` or `standard pruning`."""
    named = {"0": "θ₀", "none": "standard pruning"}
    return named.get(point) or (percent(float(point)) if float(point) < 1 else f"{point} steps")


def common_sparsity(study: Study) -> float:
    """Where masks are compared: the transfer's sparsity, or the one most tasks plan; of several that nearest 70 %."""
    own = [s for task in study.tasks for s in study.own(task)]
    return min(transferred(study) or own, key=lambda s: (-own.count(s), abs(s - 0.7)))


def tickets(study: Study, sparsity: float) -> list[Section]:
    """What the masks look like: sparsity by layer, and how much two tasks' tickets share."""
    wanted = [t for t in study.tasks if sparsity in study.own(t)]
    layers: dict[str, list[dict[str, float]]] = {task: [] for task in wanted}
    shared: dict[tuple[str, str], list[float]] = {}
    for found in by_seed(study, sparsity):
        for i, (task, ticket) in enumerate(found.items()):
            layers[task].append(ticket.layer_sparsity())
            for other in list(found)[:i]:
                shared.setdefault((other, task), []).append(found[other].overlap(ticket)["all"])
    absent = [task for task, known in layers.items() if not known]
    missing = [f"Missing tickets: {', '.join(absent)}."] if absent else []
    by_layer = Section(f"Sparsity by layer at {percent(sparsity)}", missing)
    overlap = Section(f"Overlap of tickets at {percent(sparsity)}", list(missing))
    if len(absent) < len(wanted):
        fill_layers(by_layer, study, layers)
    if len(wanted) > 1:
        fill_overlap(overlap, study, wanted, shared, sparsity)
    return [by_layer, overlap] if len(wanted) > 1 else [by_layer]


def by_seed(study: Study, sparsity: float) -> Iterable[dict[str, "Ticket"]]:
    """The tickets of all tasks with one seed, then with the next, so that few are in memory at a time."""
    from lth_scale.ticket import Ticket  # imports torch

    cells = [c for c in study.cells if c.ticket and c.sparsity == sparsity and c.kind == "tickets on their own task"]
    for seed in sorted({c.seed for c in cells}):
        yield {c.task: Ticket.load(c.ticket) for c in cells if c.seed == seed and c.ticket}


def fill_layers(section: Section, study: Study, layers: Mapping[str, list[dict[str, float]]]) -> None:
    """Add a heat map of layers × kinds of matrices a task, and a table of the means by kind."""
    names = list(dict.fromkeys(name for known in layers.values() for layer in known for name in layer))
    place = {name: _place(name) for name in names}
    depth = list(dict.fromkeys(layer for layer, _ in place.values() if layer))
    kinds = list(dict.fromkeys(kind for layer, kind in place.values() if layer))
    others = [name for name in names if not place[name][0]]
    panels, rows = {}, []
    for task, known in layers.items():
        mean = {name: 100 * statistics.fmean(layer[name] for layer in known) for name in names if known}
        at = {place[name]: value for name, value in mean.items()}
        label = f"{task} (n = {len(known)})" if known else f"{task} (missing)"
        panels[label] = (depth, kinds, [[at.get((d, kind), math.nan) for kind in kinds] for d in depth])
        means = [[at[d, kind] for d in depth if (d, kind) in at] for kind in kinds]
        columns = [*means, *([mean[name]] if name in mean else [] for name in others)]
        rows.append([task, str(len(known)), *(f"{statistics.fmean(v):.1f}" if v else "missing" for v in columns)])
    section.text.append("Pruned weights in percent, mean over the seeds' tickets. Rows of the figure are layers.")
    header = ["task", "n", *kinds, *(name.removesuffix(".weight") for name in others)]
    section.tables.append(Table("Mean over the layers, percent pruned", header, rows))
    if depth:
        png = figures.heat_maps(panels, "pruned (%)", study.title(f"Sparsity by layer, {study.short_model}"))
        section.pictures["layers.png"] = ("sparsity by layer and kind of matrix", png)


def _place(name: str) -> tuple[str, str]:
    """('3', 'Q') of a parameter in layer 3; ('', its name) of one outside the layers."""
    found = re.fullmatch(r".*?\.(\d+)\.(.+)\.weight", name)
    return (found[1], KINDS.get(found[2], found[2])) if found else ("", name)


def fill_overlap(
    section: Section, study: Study, tasks: list[str], shared: Mapping[tuple[str, str], list[float]], sparsity: float
) -> None:
    """Add the matrix of shared kept weights, as figure and table."""

    def between(a: str, b: str) -> list[float]:
        return shared.get((a, b)) or shared.get((b, a)) or []

    means = [[100 * statistics.fmean(between(a, b)) if between(a, b) else math.nan for b in tasks] for a in tasks]
    texts = [["—" if a == b else "missing" if math.isnan(v) else f"{v:.1f} (n = {len(between(a, b))})"
              for b, v in zip(tasks, row, strict=True)] for a, row in zip(tasks, means, strict=True)]  # fmt: skip
    section.text.append(
        f"Kept weights of one task's ticket that the other's keeps too, in percent, mean over pairs of one seed. "
        f"Two random masks of this sparsity share {percent(1 - sparsity)}. Hatched: missing, or a task with itself."
    )
    rows = [[task, *row] for task, row in zip(tasks, texts, strict=True)]
    section.tables.append(Table("Shared kept weights, percent", ["", *tasks], rows))
    title = study.title(f"Overlap of tickets, chance {percent(1 - sparsity)}")
    chance = (100 * (1 - sparsity), 100.0)
    png = figures.heat_maps({study.short_model: (tasks, tasks, means)}, "shared (%)", title, chance)
    section.pictures["overlap.png"] = ("overlap of tickets", png)


def every_verdict(study: Study, delta: float) -> Section:
    """Each ticket against the full network, and the metrics beside the task's own."""
    keys = [(c.task, c.sparsity, c.source) for c in study.cells if c.kind.startswith("tickets")]
    order = {task: i for i, task in enumerate(study.tasks)}
    keys = sorted(set(keys), key=lambda k: (order.get(k[0], 99), k[2] != k[0], order.get(k[2] or "", 99), k[1]))
    entries = [([t, source or "", percent(s)], study.ticket(t, s, source), study.full(t)) for t, s, source in keys]
    labels = ["task", "ticket of", "sparsity"]
    table = verdict_table("Verdicts on all tickets, p uncorrected", labels, entries, delta, adjust=False)
    section = Section("Every verdict", [], [table])
    rows = other_metrics(study)
    if rows:
        section.tables.append(Table("Other metrics", ["task", "network", "sparsity", "metric", "mean ± sd"], rows))
    return section


def other_metrics(study: Study) -> list[list[str]]:
    """All metrics but the task's first, of the full network, tickets and controls at Table 2's sparsity."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    at_table = {task: at_paper(task, study.own(task))[0] for task in study.tasks if study.own(task)}
    for cell in study.cells:
        wanted = cell.sparsity in (0, at_table.get(cell.task)) and cell.source in (None, cell.task)
        if wanted and cell.rewind == "0":
            for name, value in list(cell.evals.items())[1:]:
                values.setdefault((cell.task, cell.kind, percent(cell.sparsity), name), []).append(value)
    return [[*key, format(summary(v), ".3f" if key[3] in UNSCALED else ".1f")] for key, v in sorted(values.items())]


def percent(fraction: float) -> str:
    """`70 %`."""
    return f"{100 * fraction:.4g} %"


def signed(points: float) -> str:
    """`+0.14`, `−1.20`, `0.00`."""
    return f"{points:+.2f}".replace("-", "−") if round(points, 2) else "0.00"


def difference(sub: Group, full: Group) -> str:
    """The difference of the means in points."""
    return signed(sub.summary.mean - full.summary.mean) if sub.scores and full.scores else "missing"


def number(p: float | None) -> str:
    """A p-value after `p `: `= 0.412`, `< 0.001`."""
    return "cannot be told" if p is None else "< 0.001" if p < 0.001 else f"= {p:.3f}"


def sources(entries: Iterable[Mapping[str, Any]]) -> str:
    """Where the paper's numbers come from, and how they were verified."""
    known = dict.fromkeys(f"{entry['source']} (verified: {entry['verified']})" for entry in entries)
    return f"The paper's numbers: {'; '.join(known)}."


def markdown(study: Study, made: Sequence[Section]) -> str:
    """The report as Markdown, its pictures as files beside it."""
    parts = [f"# Report: {study.name}", *([f"> **{study.note}**"] if study.note else [])]
    for section in made:
        parts += [f"## {section.title}", *section.text]
        for table in section.tables:
            lines = [table.header, ["---"] * len(table.header), *table.rows]
            grid = ["| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines]
            parts += [f"### {table.title}", "\n".join(grid)]
        parts += [f"![{caption}]({name})" for name, (caption, _) in section.pictures.items()]
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8888 } h3 { margin: 1.5rem 0 .3rem; font-size: 1rem }
.note { border: 3px solid; padding: .6rem 1rem; font-weight: bold }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top }
thead th { border-bottom: 2px solid }
figure { display: inline-block; vertical-align: top; max-width: 100%; margin: 1rem 0 }
figcaption { font-size: .85rem }
img { max-width: 100%; height: auto; background: white }
@media print { body { max-width: none; font-size: 9pt } figure, tr { break-inside: avoid } .wide { overflow: visible }
  table { font-size: 7pt } th, td { padding: .1rem .25rem } }
"""


def page(study: Study, made: Sequence[Section]) -> str:
    """The report as one HTML file that needs no other."""
    text = html.escape
    parts = [f"<h1>Report: {text(study.name)}</h1>"]
    parts += [f'<p class="note">{text(study.note)}</p>'] if study.note else []
    for section in made:
        parts += [f"<section><h2>{text(section.title)}</h2>", *(f"<p>{text(line)}</p>" for line in section.text)]
        parts += [_html_table(table) for table in section.tables]
        for caption, png in section.pictures.values():
            data = base64.b64encode(png).decode()
            width = int.from_bytes(png[16:20]) * 96 // 150  # its IHDR's pixels, drawn at 150 an inch
            image = f'<img alt="{text(caption)}" width="{width}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>")
        parts.append("</section>")
    head = f'<meta charset="utf-8"><title>Report: {text(study.name)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{view}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kept = [re.sub(r" (?=[=±%]|&lt;)|(?<=[=±]) |(?<=&lt;) ", "\u00a0", html.escape(cell)) for cell in cells]
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in kept) + "</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    head = f"<thead>{line(table.header, 'th')}</thead>"
    return f'<h3>{html.escape(table.title)}</h3><div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def write(study: Study, output: Path, delta: float) -> list[Path]:
    """Write report.html, report.md and the pictures into `output`; `delta` in points. Returns the files."""
    made = sections(study, delta)
    contents = {"report.html": page(study, made).encode(), "report.md": markdown(study, made).encode()}
    contents |= {name: png for section in made for name, (_, png) in section.pictures.items()}
    for name, content in contents.items():
        files.write_bytes(output / name, content)
    return [output / name for name in contents]


def mlflow_store(directory: Path) -> str | None:
    """MLFLOW_TRACKING_URI, or the store of the study's jobs; None where there is neither."""
    beside = directory.resolve() / "jobs" / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or (f"sqlite:///{beside}" if beside.is_file() else None)


def parse() -> argparse.Namespace:
    """The command line. Raises BadInput."""
    parser = OneLineParser(prog="lth_scale.report", description="Write the report of a study.", allow_abbrev=False)
    parser.add_argument("directory", help="the directory of a study, with its study.json")
    parser.add_argument("--delta", type=float, default=1.0, help="loss in points that matching tolerates (default 1)")
    parser.add_argument("--output_dir", help="where the report is written (default: DIRECTORY/report)")
    parser.add_argument("--report_to", choices=("mlflow", "none"), default="mlflow", help="where it is logged")
    args = parser.parse_args()
    if not 0 <= args.delta < math.inf:
        raise BadInput(f"--delta {args.delta}: out of range; give percent points, 0 or more")
    return args


def main() -> None:
    """Write the report of the study that the command line names, log it, and say where it is."""
    args = parse()
    study = load(args.directory)
    output = Path(args.output_dir or study.directory / "report")
    try:
        written = write(study, output, args.delta)
    except OSError as problem:
        raise BadInput(f"--output_dir {output}: cannot be written ({problem}); give another") from None
    there = sum(bool(cell.evals) for cell in study.cells)
    print(f"report   {output / 'report.html'}\n         {output / 'report.md'}")
    print(f"cells    {len(study.cells)} planned, {there} there, {len(study.cells) - there} missing")
    store = mlflow_store(study.directory) if args.report_to == "mlflow" else None
    if store:
        from lth_scale import tracking  # imports mlflow

        tracking.log_report(store, study.name, written)
    print(f"MLflow   {f'logged to {store}' if store else 'not logged'}")


if __name__ == "__main__":
    exit_on_bad_input(main)
