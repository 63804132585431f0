"""Which tickets match the full network, by each rule."""

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
from lth_scale.science.results import CLOSE, OTHER, OWN, UNSCALED, StudyResults
from lth_scale.science.texts import difference, percent, score_text, signed
from lth_scale.tracking.mlflow.registration import Registration

*THRESHOLDS, WELCH, PAIRED = RULES


@dataclass(frozen=True)
class Comparison:
    """A row of a table of verdicts: scores by seed of a subnetwork and of its reference."""

    labels: Sequence[str]
    subnetwork: pandas.Series
    reference: pandas.Series

    def verdicts(self, delta: float) -> dict[str, Verdict]:
        """The verdict of each rule; `delta` in percent points."""
        subnetwork, reference = (
            scores.dropna().to_dict() for scores in (self.subnetwork, self.reference)
        )
        return {verdict.rule: verdict for verdict in verdicts(subnetwork, reference, delta)}


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
        welch = WORDS[decide(p)] + tested("p", verdict[WELCH].p)
        rows.append(
            [
                *comparison.labels,
                score_text(comparison.subnetwork),
                score_text(comparison.reference),
                signed(difference(comparison.subnetwork, comparison.reference)),
                *(WORDS[verdict[rule].matches] for rule in THRESHOLDS),
                welch + (tested("Holm", p) if adjust else ""),
                _paired_text(verdict[PAIRED]),
            ]
        )
    holm_note = f", Holm over {sum(p is not None for p in p_values)}" if adjust else ""
    tests = [f"{WELCH}, δ = {delta:g}{holm_note}", f"{PAIRED}, δ = {delta:g}"]
    header = [*labels, "subnetwork", "compared with", "difference", *THRESHOLDS, *tests]
    return Table(title, header, rows)


def _paired_text(verdict: Verdict) -> str:
    pairs = "" if verdict.p is None else f", n = {verdict.sub.n} pairs"
    return WORDS[verdict.matches] + tested("p", verdict.p) + pairs


def verdicts_by_sparsity(
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
    return {
        rule: _range_text(by_sparsity)
        for rule, by_sparsity in verdicts_by_sparsity(study, task, delta).items()
    }


def _range_text(by_sparsity: Mapping[float, Verdict]) -> str:
    matching, failing, unknown = (
        [sparsity for sparsity, verdict in by_sparsity.items() if verdict.matches is answer]
        for answer in (True, False, None)
    )
    if not matching and not failing:
        return WORDS[None]
    parts = [
        percent(max(matching)) if matching else "none",
        f"first fails at {percent(min(failing))}" if failing else "fails nowhere",
    ]
    if unknown:
        parts.append(f"cannot be told at {', '.join(map(percent, unknown))}")
    return "; ".join(parts)


def highest_matching(study: StudyResults, tasks: Sequence[str], delta: float) -> Table:
    """By task and rule, the highest sparsity that matches, beside the paper's."""
    rows = []
    for task in tasks:
        paper = (f"{printed(task)[key]} %" for key in ("sparsity", "strict"))
        rows.append([task, *matching_ranges(study, task, delta).values(), *paper])
    tests = [f"{rule}, δ = {delta:g}, p uncorrected" for rule in (WELCH, PAIRED)]
    header = ["task", *THRESHOLDS, *tests]
    header += ["paper, Table 2 (within sd)", "paper, Table 4 (strict)"]
    title = "Highest sparsity that matches (n and p of each are in the last section)"
    return Table(title, header, rows)


def matching_tickets(study: StudyResults, delta: float) -> list[Registration]:
    """The ticket to register for each task and rule.

    It is the ticket of the first seed: the verdict is on all seeds, and no ticket is selected by
    its own score.
    """
    tickets = []
    for task, rule in product(study.tasks, RULES):
        by_sparsity = verdicts_by_sparsity(study, task, delta)[rule]
        matching = [sparsity for sparsity, verdict in by_sparsity.items() if verdict.matches]
        text, seed, path = "", 0, None
        if matching:
            best = by_sparsity[max(matching)]
            p = "" if best.p is None else f", δ = {delta:g}{tested('p', best.p)} uncorrected"
            text = f"{_range_text(by_sparsity)} ({best.sub:.1f} against {best.full:.1f}{p})"
            seed, path = _first_ticket(study, task, max(matching))
        tickets.append(
            Registration(task=task, base=study.model, rule=rule, text=text, ticket=path, seed=seed)
        )
    return tickets


def _first_ticket(study: StudyResults, task: str, sparsity: float) -> tuple[int, Path | None]:
    """Seed and path of the first seed's ticket that is present."""
    searches = (search for search in study.searches if search.task == task)
    return next(
        (
            (search.seed, path)
            for search in sorted(searches, key=lambda search: search.seed)
            for reached, path in search.tickets.items()
            if abs(reached - sparsity) <= CLOSE and path.is_file()
        ),
        (0, None),
    )


def all_verdicts(study: StudyResults, delta: float) -> Section:
    """Each ticket against the full network, and the metrics other than the primary one."""
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
    labels, title = ["task", "ticket of", "sparsity"], "Verdicts on all tickets, p uncorrected"
    tables = [verdict_table(title, labels, comparisons, delta, adjust=False)]
    if (metrics := other_metrics(study)).rows:
        tables.append(metrics)
    return Section("Every verdict", [], tables)


def other_metrics(study: StudyResults) -> Table:
    """The metrics other than the primary one, of the dense networks and at Table 2's sparsity."""
    sparsity = {
        task: closest_to_table2(task, study.control_sparsities(task))[0]
        for task in study.tasks
        if study.sparsities(task)
    }
    rows = study.table[~study.table.primary & (study.table.rewind == "0")]
    rows = rows[rows.source == rows.task]
    rows = rows[(rows.sparsity == 0) | (rows.sparsity == rows.task.map(sparsity))]
    # Sorted by the text of the sparsity.
    rows = rows.assign(sparsity=rows.sparsity.map(percent))
    keys = ["task", "network", "sparsity", "metric"]
    lines = [
        [*key, format(summary(values.to_list()), ".3f" if key[-1] in UNSCALED else ".1f")]
        for key, values in rows.groupby(keys).value
    ]
    return Table("Other metrics", [*keys, "mean ± sd"], lines)
