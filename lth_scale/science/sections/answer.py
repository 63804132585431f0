"""What a study found, in three sentences that are filled from its results."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from lth_scale.config.markdown import Section
from lth_scale.pruning.registries import CONTROLS
from lth_scale.science.matching import short_answer
from lth_scale.science.noninferiority import FEWEST_SEEDS
from lth_scale.science.results import Network, StudyResults
from lth_scale.science.sections.scores import control_comparisons, spans
from lth_scale.science.sections.verdicts import Judged, by_sparsity, families, sparsities_with
from lth_scale.tasks.registry import metric_named

ONE_SEED = "With a single seed nothing can be shown: every comparison is undecided."
WNLI = (
    "WNLI is at chance by design (its validation set contradicts its training set): comparisons on "
    "it are meaningless."
)
Families = Mapping[Network, Mapping[float, Judged]]


def answer(study: StudyResults, delta: float | None) -> Section:
    """The sentences, and what a reader must know before believing them."""
    tickets = [family for family in families(study) if _is_ticket(family)]
    own = [family for family in tickets if family.source == family.task]
    judged = {family: by_sparsity(study, family, delta) for family in own or tickets}
    sentences = [
        _matching(judged),
        _controls(study, own, delta),
        _undecided([x for by in judged.values() for x in by.values()]),
    ]
    return Section("The answer", [*sentences, *_warnings(study)])


def _is_ticket(family: Network) -> bool:
    return family.control == "none" and family.rewind == "0"


def _matching(judged_families: Families) -> str:
    """Which sparsities match at which δ, or that none does."""
    matches, worse = ([*_where(judged_families, answer)] for answer in ("matches", "worse"))
    margins = _margins(judged_families)
    text = f"No ticket is shown to match the full network ({margins})"
    if matches:
        text = f"Tickets match the full network (a loss of δ or more is rejected; {margins}) on "
        text += "; ".join(matches)
    return f"{text}. They are worse on {'; '.join(worse)}." if worse else f"{text}."


def _where(judged: Families, answer: str) -> Iterator[str]:
    """`sst2 at 20 %, 40 % (n = 5)` for each task that has the answer."""
    for family, by in judged.items():
        if sparsities := sparsities_with(by, answer):
            own = "" if family.source == family.task else f" with the ticket of {family.source}"
            n = sorted({by[sparsity].verdict.n for sparsity in sparsities})
            where = spans(sparsities, [*by])
            yield f"{family.task}{own} at {where} (n = {' or '.join(map(str, n))})"


def _margins(judged_families: Families) -> str:
    """`δ = 1 point`, or `δ = 1 point on sst2; δ needs --delta on mlm` if they differ."""
    tasks: dict[str, dict[str, None]] = {}
    for family, by in judged_families.items():
        for comparison, verdict in by.values():
            margin = _margin(comparison.metric, verdict.delta)
            tasks.setdefault(margin, {})[family.task] = None
    if len(tasks) == 1:
        return f"δ {next(iter(tasks))}"
    return "; ".join(f"δ {margin} on {', '.join(x)}" for margin, x in tasks.items())


def _margin(metric: str, delta: float | None) -> str:
    """`= 1 point`, or `= 0.1` of a metric that is not printed in percentage points."""
    if delta is None:
        return "needs --delta"
    points = f" point{'s' * (delta != 1)}" if metric_named(metric).scale == 100 else ""
    return f"= {delta:g}{points}"


def _controls(study: StudyResults, own: Sequence[Network], delta: float | None) -> str:
    """How the controls compare with the tickets of their sparsity."""
    rows = [row for family in own for row in control_comparisons(study, family.task, delta)]
    if not rows:
        return "No control was planned: nothing here shows that the mask or θ₀ matters."
    rows.sort(key=lambda row: [*CONTROLS].index(row.control))
    parts: tuple[list[str], list[str]] = [], []
    for control, group in groupby(rows, key=lambda row: row.control):
        counts, entry = (
            Counter(short_answer(row.judged.verdict) for row in group),
            CONTROLS[control],
        )
        parts[entry.budget is not None].append(f"{entry.label}: {counted(counts)}")
    titles = (
        "Controls compared with the ticket of the same sparsity",
        "The ticket compared with dense networks that had the budget of its search",
    )
    texts = (f"{title}: {'; '.join(x)}." for title, x in zip(titles, parts, strict=True) if x)
    return " ".join(texts)


def counted(counts: Mapping[str, int]) -> str:
    """`worse 3 of 4, undecided 1`: answers by their counts."""
    parts = [f"{answer} {count}" for answer, count in counts.items()]
    return f"{', '.join(parts)} of {sum(counts.values())}"


def _undecided(judged: Sequence[Judged]) -> str:
    """How many comparisons are undecided, and how many seeds would settle them."""
    answers = Counter(short_answer(verdict) for _, verdict in judged)
    open_ones = [verdict for _, verdict in judged if short_answer(verdict) == "undecided"]
    text = f"Undecided: {len(open_ones)} of {len(judged)} comparisons with the full network"
    tested = [verdict for verdict in open_ones if verdict.n >= FEWEST_SEEDS]
    if seeds := sorted(verdict.more_seeds for verdict in tested if verdict.more_seeds):
        span = str(seeds[0]) if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
        plural = "s" * (seeds[-1] > 1)
        text += f"; {span} further seed{plural} would settle {len(seeds)} of them"
        text += " at the spread seen"
    if few := len(open_ones) - len(tested):
        text += f"; {few} of them have fewer than {FEWEST_SEEDS} seeds"
    if without := sum(verdict.delta is None for verdict in open_ones):
        text += f"; {without} of them have no δ (--delta gives one)"
    if missing := answers["no verdict"]:
        text += f". No verdict: {missing}, of networks that are dead or untrained"
    return f"{text}."


def _warnings(study: StudyResults) -> list[str]:
    """What limits the answer: missing trainings, one seed, a task at chance."""
    planned, finished = len(study.conditions), int(study.conditions.value.count())
    missing = f"Missing: {planned - finished} of {planned} trainings."
    seeds = study.conditions.seed.nunique()
    notes = {missing: finished < planned, ONE_SEED: seeds < 2, WNLI: "wnli" in study.tasks}
    return [note for note, applies in notes.items() if applies]
