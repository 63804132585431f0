"""The tickets that match the full network, by each rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.science.matching import (
    RULES,
    WORDS,
    Verdict,
    decide,
    holm,
    summary,
    tested,
    verdicts,
)
from lth_scale.science.paper import closest_to_table2, printed
from lth_scale.science.results import (
    CLOSE,
    OTHER,
    OWN,
    UNSCALED,
    StudyResults,
    mean_difference,
    percent,
    score_text,
    signed,
)
from lth_scale.tracking.mlflow.models import Registration

*THRESHOLDS, WELCH, PAIRED = RULES


@dataclass(frozen=True)
class Comparison:
    """Scores by seed of a subnetwork and of its reference; labels: the first cells of a row."""

    labels: Sequence[str]
    subnetwork: pandas.Series
    reference: pandas.Series

    def verdicts(self, delta: float) -> dict[str, Verdict]:
        """The verdict of each rule; `delta` in percentage points."""
        sub, full = (x.dropna().to_dict() for x in (self.subnetwork, self.reference))
        return {verdict.rule: verdict for verdict in verdicts(sub, full, delta)}


def verdict_table(
    title: str,
    labels: Sequence[str],
    comparisons: Sequence[Comparison],
    delta: float,
    adjust: bool = True,
) -> Table:
    """A table of every rule's verdict on each comparison, with δ, p and n.

    adjust: apply Holm's correction to Welch's p over all comparisons.
    """
    results = [comparison.verdicts(delta) for comparison in comparisons]
    p_values = [verdict[WELCH].p for verdict in results]
    adjusted = holm(p_values) if adjust else p_values
    rows = []
    for comparison, verdict, p in zip(comparisons, results, adjusted, strict=True):
        welch, paired = verdict[WELCH], verdict[PAIRED]
        pairs = "" if paired.p is None else f", n = {paired.sub.n} pairs"
        rows.append(
            [
                *comparison.labels,
                score_text(comparison.subnetwork),
                score_text(comparison.reference),
                signed(mean_difference(comparison.subnetwork, comparison.reference)),
                *(WORDS[verdict[rule].matches] for rule in THRESHOLDS),
                WORDS[decide(p)] + tested("p", welch.p) + (tested("Holm p", p) if adjust else ""),
                WORDS[paired.matches] + tested("p", paired.p) + pairs,
            ]
        )
    tests = sum(p is not None for p in p_values)
    note = f", Holm over {tests} test{'s' * (tests != 1)}" if adjust else ""
    header = [*labels, "subnetwork", "reference", "difference", *THRESHOLDS]
    header += [f"{WELCH}, δ = {delta:g}{note}", f"{PAIRED}, δ = {delta:g}"]
    return Table(title, header, rows)


def _verdicts_by_sparsity(
    study: StudyResults, task: str, delta: float
) -> dict[str, dict[float, Verdict]]:
    """By rule and sparsity, the verdicts on a task's own tickets."""
    full = study.scores(task)
    by_sparsity = {
        sparsity: Comparison((), study.scores(task, sparsity), full).verdicts(delta)
        for sparsity in study.sparsities(task)
    }
    return {
        rule: {sparsity: verdict[rule] for sparsity, verdict in by_sparsity.items()}
        for rule in RULES
    }


def matching_ranges(study: StudyResults, task: str, delta: float) -> dict[str, str]:
    """By rule, the highest sparsity that matches and the lowest that does not, as text."""
    by_rule = _verdicts_by_sparsity(study, task, delta)
    return {rule: _range_text(by_sparsity) for rule, by_sparsity in by_rule.items()}


def _range_text(by_sparsity: Mapping[float, Verdict]) -> str:
    matching, failing, undecided = (
        [sparsity for sparsity, verdict in by_sparsity.items() if verdict.matches is answer]
        for answer in (True, False, None)
    )
    if not matching and not failing:
        return WORDS[None]
    parts = [
        percent(max(matching)) if matching else "none",
        f"first fails at {percent(min(failing))}" if failing else "never fails",
    ]
    if undecided:
        parts.append(f"undecided at {', '.join(map(percent, undecided))}")
    return "; ".join(parts)


def highest_matching(study: StudyResults, tasks: Sequence[str], delta: float) -> Table:
    """The highest matching sparsity by task and rule, and the paper's."""
    rows = []
    for task in tasks:
        paper = (f"{printed(task)[key]} %" for key in ("sparsity", "strict"))
        rows.append([task, *matching_ranges(study, task, delta).values(), *paper])
    tests = [f"{rule}, δ = {delta:g}, unadjusted p" for rule in (WELCH, PAIRED)]
    papers = ["paper, Table 2 (within sd)", "paper, Table 4 (strict)"]
    title = "Highest matching sparsity (for n and p see All verdicts)"
    return Table(title, ["task", *THRESHOLDS, *tests, *papers], rows)


def matching_tickets(study: StudyResults, delta: float) -> list[Registration]:
    """The ticket to register for each task and rule: that of the first seed.

    The verdict is on all seeds, and no ticket is selected by its own score.
    """
    tickets = []
    for task, rule in product(study.tasks, RULES):
        by_sparsity = _verdicts_by_sparsity(study, task, delta)[rule]
        matching = [sparsity for sparsity, verdict in by_sparsity.items() if verdict.matches]
        text, seed, path = "", 0, None
        if matching:
            best = by_sparsity[max(matching)]
            p = "" if best.p is None else f", δ = {delta:g}{tested('unadjusted p', best.p)}"
            text = f"{_range_text(by_sparsity)} ({best.sub:.1f} against {best.full:.1f}{p})"
            seed, path = _first_ticket(study, task, max(matching))
        tickets.append(
            Registration(task=task, base=study.model, rule=rule, text=text, ticket=path, seed=seed)
        )
    return tickets


def _first_ticket(study: StudyResults, task: str, sparsity: float) -> tuple[int, Path | None]:
    tickets = [
        (search.seed, path)
        for search in study.searches
        for reached, path in search.tickets.items()
        if search.task == task and abs(reached - sparsity) <= CLOSE and path.is_file()
    ]
    return min(tickets, default=(0, None))


def all_verdicts(study: StudyResults, delta: float) -> Section:
    """All tickets compared with the full network, and the metrics other than the primary one."""
    rows = study.conditions[study.conditions.network.isin((OWN, OTHER))]
    networks = {*zip(rows.task, rows.source, rows.sparsity, strict=True)}
    comparisons = [
        Comparison(
            [task, source, percent(sparsity)],
            study.scores(task, sparsity, source=source),
            study.scores(task),
        )
        for task, source, sparsity in sorted(
            networks, key=lambda key: (study.tasks.index(key[0]), key[1] != key[0], key)
        )
    ]
    labels = ["task", "ticket of", "sparsity"]
    tables = [verdict_table("All tickets, unadjusted p", labels, comparisons, delta, adjust=False)]
    if (metrics := _other_metrics(study)).rows:
        tables.append(metrics)
    return Section("All verdicts", [], tables)


def _other_metrics(study: StudyResults) -> Table:
    sparsity = {
        task: closest_to_table2(task, study.control_sparsities(task))[0]
        for task in study.tasks
        if study.sparsities(task)
    }
    rows = study.table[~study.table.primary & (study.table.rewind == "0")]
    rows = rows[rows.source == rows.task]
    rows = rows[(rows.sparsity == 0) | (rows.sparsity == rows.task.map(sparsity))]
    rows = rows.assign(sparsity=rows.sparsity.map(percent))
    keys = ["task", "network", "sparsity", "metric"]
    lines = [
        [*key, format(summary(values.to_list()), ".3f" if key[-1] in UNSCALED else ".1f")]
        for key, values in rows.groupby(keys).value
    ]
    return Table("Other metrics", [*keys, "mean ± sd"], lines)
