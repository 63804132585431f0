"""Which networks match the full network: verdicts corrected over their families."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas

from lth_scale.config.markdown import Section, Table
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.example_facts import example_facts
from lth_scale.science.flaws import flaw_of_training
from lth_scale.science.matching import (
    PAPERS_RULES,
    RULES,
    answer_text,
    facts,
    further_seeds,
    interval_text,
    n_text,
    p_texts,
    paper_rules,
    rules_text,
    short_answer,
    signed,
    summary,
)
from lth_scale.science.noninferiority import (
    FEWEST_SEEDS,
    NO_VERDICT,
    Verdict,
    correct,
    verdict,
    without_verdict,
)
from lth_scale.science.paper import closest_to_table2, printed
from lth_scale.science.results import CLOSE, Network, StudyResults, percent, score_text
from lth_scale.science.sections import examples
from lth_scale.tasks.registry import metric_named
from lth_scale.tracking.mlflow.models import Registration

READING = (
    "The difference is subnetwork − reference, positive where the subnetwork is better. It matches "
    "if a loss of δ or more is rejected, it is worse if a loss below δ is rejected (one-sided, "
    "α = 0.05; decided by the 90 % interval), and is undecided otherwise: t-tests paired by seed "
    "where both plan the same seeds, else Welch's. p belongs to the side on which the difference "
    "lies; the answer is that of Holm's p, over a network's sparsities. Further seeds: how many "
    "more would settle it at the spread seen. The paper's rules are those by which it matches."
)
VERDICT_COLUMNS = (
    *("difference", "low_90", "high_90", "low_95", "high_95", "delta"),
    *("p", "p_worse", "holm_p", "holm_p_worse"),
    *("n", "paired", "answer", "reason", "further_seeds"),
)


ANSWERS = ("matches", "worse", "undecided", "no verdict")


@dataclass(frozen=True)
class Comparison:
    """Scores by seed, in the unit printed, of a subnetwork and of its reference.

    NaN for a missing seed. metric: the name of their metric.
    """

    subnetwork: pandas.Series
    reference: pandas.Series
    metric: str

    def verdict(self, delta: float | None) -> Verdict:
        """The uncorrected verdict; delta: in the unit printed, or None for the metric's own."""
        paired = {*self.subnetwork.index} == {*self.reference.index}
        if delta is None:
            delta = metric_named(self.metric).delta
        return verdict(*self._samples(), delta, paired=paired)

    def rules(self) -> dict[str, bool | None]:
        """Whether it matches by each rule of the paper."""
        return paper_rules(*self._samples())

    def _samples(self) -> tuple[dict[int, float], dict[int, float]]:
        """Both by seed, with more being better."""
        sign = metric_named(self.metric).sign
        sub, full = ((sign * x.dropna()).to_dict() for x in (self.subnetwork, self.reference))
        return sub, full


class Judged(NamedTuple):
    """A comparison and its verdict, corrected over its family."""

    comparison: Comparison
    verdict: Verdict


def judge(
    comparisons: Sequence[Comparison], delta: float | None, flaws: Sequence[str] = ()
) -> list[Judged]:
    """The verdicts of the comparisons of one family, corrected by Holm's method.

    flaws: why a comparison gets no verdict, "" if it does; none by default.
    """
    verdicts = [comparison.verdict(delta) for comparison in comparisons]
    pairs = zip(verdicts, flaws or [""] * len(verdicts), strict=True)
    verdicts = [without_verdict(verdict, flaw) if flaw else verdict for verdict, flaw in pairs]
    return [*map(Judged, comparisons, correct(verdicts))]


def flaw_of(study: StudyResults, network: Network) -> str:
    """Why a network gets no verdict, or "": it, or its full network, is dead or untrained."""
    return own_flaw(study, network.full) or own_flaw(study, network)


@functools.lru_cache(maxsize=4096)  # every table asks for the flaws of its networks
def own_flaw(study: StudyResults, network: Network) -> str:
    """Why a network itself is dead or untrained, or "". See `flaws.flaw_of_training`."""
    name = f"the {CONTROLS[network.control].label}" if network.sparsity else "the full network"
    scores = study.scores(network).dropna()
    trainings = example_facts(study).seeds(network) if len(scores) < FEWEST_SEEDS else {}
    flaw = flaw_of_training(
        study.is_constant(network),
        scores.to_list(),
        [training.bound for training in trainings.values()],
        study.baseline(network.task),
        metric_named(study.metric(network.task)).sign,
    )
    return flaw and f"{name} {flaw}"


@functools.lru_cache(maxsize=1024)  # several tables ask for the same family
def by_sparsity(
    study: StudyResults, family: Network, delta: float | None
) -> Mapping[float, Judged]:
    """One family: a network, of any sparsity, compared with the full one at all its sparsities."""
    rows, (task, _, control, source, rewind) = study.conditions, family.key
    chosen = (rows.task == task) & (rows.source == source) & (rows.sparsity > 0)
    chosen &= (rows.control == control) & (rows.rewind == rewind)
    sparsities = sorted(rows[chosen].sparsity.unique().tolist())
    networks = [family._replace(sparsity=sparsity) for sparsity in sparsities]
    full, metric = study.scores(family.full), study.metric(task)
    comparisons = [Comparison(study.scores(network), full, metric) for network in networks]
    flaws = [flaw_of(study, network) for network in networks]
    return dict(zip(sparsities, judge(comparisons, delta, flaws), strict=True))


def by_rewind_point(
    study: StudyResults, network: Network, points: Sequence[str], delta: float | None
) -> dict[str, Judged]:
    """One family: a network with each rewind point, compared with the same one rewound to θ₀."""
    reference = network._replace(rewind="0")
    scores, metric = study.scores(reference), study.metric(network.task)
    rewound = [network._replace(rewind=point) for point in points]
    comparisons = [Comparison(study.scores(other), scores, metric) for other in rewound]
    flaws = [flaw_of(study, reference) or flaw_of(study, other) for other in rewound]
    return dict(zip(points, judge(comparisons, delta, flaws), strict=True))


def families(study: StudyResults) -> list[Network]:
    """The networks of a study at sparsity 0: by task, its own tickets first, then transfers."""
    rows = study.conditions[study.conditions.sparsity > 0]
    columns = rows[[*Network._fields]].assign(sparsity=0.0).drop_duplicates()
    networks = itertools.starmap(Network, columns.itertuples(index=False, name=None))

    def order(network: Network) -> tuple[object, ...]:
        task, _, control, source, rewind = network
        kinds = (rewind != "0", [*CONTROLS].index(control), source != task)
        return study.tasks.index(task), *kinds, network

    return sorted(networks, key=order)


def with_verdicts(study: StudyResults, delta: float | None) -> pandas.DataFrame:
    """The table of a study with VERDICT_COLUMNS and those of each seed's examples.

    They are on the primary metric of each subnetwork. trivial: the best trivial predictor's score
    under each metric.
    """
    compared = _compared(study, delta)
    rows = [(*one.network, True, *_columns(judged.verdict)) for one, judged in compared]
    keys = [*Network._fields, "primary"]
    verdicts = pandas.DataFrame(rows, columns=[*keys, *VERDICT_COLUMNS])
    verdicts = verdicts.astype({"sparsity": float, "primary": bool})
    verdicts = verdicts.astype({"n": "Int64", "further_seeds": "Int64"})
    by_seed = examples.example_table(study, [one for one, _ in compared])
    pairs = zip(study.table.task, study.table.metric, strict=True)
    trivial = [best and best[1] for best in (study.baseline(*pair) for pair in pairs)]
    table = study.table.assign(trivial=pandas.Series(trivial, dtype=float))
    table = table.merge(verdicts, how="left", on=keys)
    return table.merge(by_seed, how="left", on=[*keys, "seed"])


def _compared(study: StudyResults, delta: float | None) -> list[tuple[examples.Subnetwork, Judged]]:
    """All subnetworks of a study, with the cells of task, name and sparsity, and their verdicts."""
    return [
        (_subnetwork(family._replace(sparsity=sparsity), judged.verdict), judged)
        for family in families(study)
        for sparsity, judged in by_sparsity(study, family, delta).items()
    ]


def _subnetwork(network: Network, verdict: Verdict) -> examples.Subnetwork:
    cells = [network.task, network_name(network), percent(network.sparsity)]
    has_verdict = not verdict.reason.startswith(NO_VERDICT)
    return examples.Subnetwork(network, cells, verdict.delta, has_verdict)


def _columns(verdict: Verdict) -> tuple[object, ...]:
    return (
        *(verdict.difference, *verdict.interval, *verdict.interval_95, verdict.delta),
        *(verdict.p, verdict.p_worse, verdict.holm, verdict.holm_worse),
        *(verdict.n, verdict.paired, short_answer(verdict), verdict.reason, verdict.more_seeds),
    )


def verdict_table(
    study: StudyResults,
    title: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Judged]],
) -> Table:
    """A table of verdicts; the first cells of a row belong to `labels`, and the task is first."""
    header = [*labels, "trivial", "subnetwork", "reference", "difference", "90 % interval"]
    header += ["95 % interval", "δ", "p", "Holm p", "n", "further seeds", "answer", PAPERS_RULES]
    lines = [[*x, study.trivial_text(x[0]), *_cells(*judged)] for x, judged in rows]
    return Table(title, header, lines)


def _cells(comparison: Comparison, verdict: Verdict) -> list[str]:
    digits = metric_named(comparison.metric).digits + 1
    return [
        score_text(comparison.subnetwork),
        score_text(comparison.reference),
        signed(verdict.difference, digits),
        interval_text(verdict.interval, digits),
        interval_text(verdict.interval_95, digits),
        "—" if verdict.delta is None else f"{verdict.delta:g}",
        *p_texts(verdict),
        n_text(verdict),
        further_seeds(verdict),
        answer_text(verdict),
        rules_text(comparison.rules()),
    ]


def sparsities_with(judged: Mapping[float, Judged], answer: str) -> list[float]:
    """The sparsities of a family that have this answer, one of ANSWERS."""
    return [sparsity for sparsity, (_, x) in judged.items() if short_answer(x) == answer]


def highest_by_rule(study: StudyResults, task: str) -> dict[str, str]:
    """By rule of the paper, the highest sparsity at which a task's tickets match, as text."""
    judged = by_sparsity(study, Network(task), None)
    rules = {sparsity: comparison.rules() for sparsity, (comparison, _) in judged.items()}
    matching = {
        rule: [sparsity for sparsity, decided in rules.items() if decided[rule]] for rule in RULES
    }
    return {rule: percent(max(x)) if x else "none" for rule, x in matching.items()}


def highest_match(study: StudyResults, task: str, delta: float | None) -> str:
    """The highest sparsity at which a task's tickets match, as text."""
    matching = sparsities_with(by_sparsity(study, Network(task), delta), "matches")
    return percent(max(matching)) if matching else "none"


def highest_matching(study: StudyResults, tasks: Sequence[str], delta: float | None) -> Table:
    """The sparsities that match, are worse or undecided by task, and the paper's."""
    rows = []
    for task in tasks:
        judged = by_sparsity(study, Network(task), delta)
        row = printed(task)
        paper = [f"{row[key]} %" if row else "—" for key in ("sparsity", "strict")]
        by_rule = highest_by_rule(study, task).items()
        rules = "; ".join(f"{rule} {sparsity}" for rule, sparsity in by_rule)
        rows.append([task, *_sparsities_by_answer(judged).values(), rules, *paper])
    header = ["task", *(f"{answer} at" for answer in ANSWERS), f"{PAPERS_RULES}, highest"]
    header += ["paper, Table 2 (within sd)", "paper, Table 4 (strict)"]
    title = "Highest matching sparsity (for intervals, p and n see All verdicts)"
    return Table(title, header, rows)


def _sparsities_by_answer(judged: Mapping[float, Judged]) -> dict[str, str]:
    by_answer = {answer: sparsities_with(judged, answer) for answer in ANSWERS}
    return {answer: ", ".join(map(percent, x)) or "none" for answer, x in by_answer.items()}


def matching_tickets(study: StudyResults, delta: float | None) -> list[Registration]:
    """The ticket to register for each task: that of the first seed at the highest match.

    The verdict is on all seeds, and no ticket is selected by its own score.
    """
    return [
        _registration(study, task, by_sparsity(study, Network(task), delta))
        for task in study.tasks
        if study.sparsities(task)
    ]


def _registration(study: StudyResults, task: str, judged: Mapping[float, Judged]) -> Registration:
    text, seed, path = "", 0, None
    if matching := sparsities_with(judged, "matches"):
        sparsity, answers = max(matching), _sparsities_by_answer(judged)
        seed, path = _first_ticket(study, task, sparsity)
        others = "; ".join(f"{answer} at {where}" for answer, where in answers.items())
        text = f"matches at {percent(sparsity)}: {facts(judged[sparsity].verdict)}. All: {others}"
    return Registration(task=task, base=study.model, text=text, ticket=path, seed=seed)


def _first_ticket(study: StudyResults, task: str, sparsity: float) -> tuple[int, Path | None]:
    tickets = [
        (search.seed, path)
        for search in study.searches
        for reached, path in search.tickets.items()
        if search.task == task and abs(reached - sparsity) <= CLOSE and path.is_file()
    ]
    return min(tickets, default=(0, None))


def all_verdicts(study: StudyResults, delta: float | None) -> Section:
    """All networks compared with the full network, and the metrics other than the primary one."""
    compared, labels = _compared(study, delta), ["task", "network", "sparsity"]
    subnetworks = [one for one, _ in compared]
    title = "All networks compared with the full network"
    verdicts = verdict_table(
        study, title, labels, [(one.cells, judged) for one, judged in compared]
    )
    tables = [
        examples.beside(study, verdicts, subnetworks),
        examples.test_set_table(study, labels, subnetworks),
        _other_metrics(study),
    ]
    shown, reading = [table for table in tables if table.rows], [READING, examples.READING]
    text = examples.missing_text(study)
    return Section("All verdicts", text, reading=reading, details=shown)


def network_name(network: Network) -> str:
    """A network of a study in words, such as `ticket of mlm` or `own ticket, rewound to 5 %`."""
    task, _, control, source, rewind = network.key
    if control != "none":
        return CONTROLS[control].label
    ticket = "own ticket" if source == task else f"ticket of {source}"
    if rewind == "none":
        return point_name(rewind) if source == task else f"{ticket}, {point_name(rewind)}"
    return ticket if rewind == "0" else f"{ticket}, rewound to {point_name(rewind)}"


def point_name(point: str) -> str:
    """`θ₀`, `5 %`, `100 steps` or `standard pruning`."""
    names = {"0": "θ₀", "none": "standard pruning"}
    return names.get(point) or (percent(float(point)) if float(point) < 1 else f"{point} steps")


def in_order(points: Iterable[str]) -> list[str]:
    """Rewind points from θ₀ to standard pruning, each once."""
    return sorted({*points}, key=lambda point: math.inf if point == "none" else float(point))


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
        [
            *key,
            study.trivial_text(key[0], key[-1]),
            format(summary(values.to_list()), f".{metric_named(key[-1]).digits}f"),
        ]
        for key, values in rows.groupby(keys).value
    ]
    return Table("Other metrics", [*keys, "trivial", "mean ± sd"], lines)
