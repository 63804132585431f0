"""What this test set says about the networks of a study, beside the answer over seeds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas

from lth_scale.config.markdown import Table
from lth_scale.science.example_facts import NONE_KEPT, Training, example_facts
from lth_scale.science.matching import interval_text, signed
from lth_scale.science.noninferiority import ALPHA
from lth_scale.science.results import Network, StudyResults

READING = (
    "“This test set” and the table On this test set compare each subnetwork with the full network "
    "of the same seed on the validation examples, against the same δ: shares of right answers by "
    "Tango's score interval, other scores by a paired bootstrap. They speak of these networks and "
    "this test set; another training may differ, and the answer, which is over seeds, does not "
    "depend on them. McNemar's exact test can only tell that two networks differ (p < 0.05). The "
    "interval over seeds and examples is that of a bootstrap of the mean difference; it needs five "
    "seeds, and its simulated coverage is in the documentation (Controls and verdicts)."
)
HEADER = ("this test set", "seeds and examples, 90 %")  # columns beside a verdict
COLUMNS = (
    *("example_difference", "example_low_90", "example_high_90", "example_answer"),
    *("example_n", "mcnemar_p"),
)
NO_ANSWER = "no verdict"


class Subnetwork(NamedTuple):
    """A subnetwork, its cells in a table, its δ, and whether it gets a verdict."""

    network: Network
    cells: Sequence[str]
    delta: float | None
    has_verdict: bool

    def answer(self, training: Training) -> str:
        """The answer of one training on the test set; "" without a comparison."""
        if training.difference is None or self.delta is None:
            return ""
        return training.difference.answer(self.delta) if self.has_verdict else NO_ANSWER


def beside(study: StudyResults, table: Table, rows: Sequence[Subnetwork]) -> Table:
    """A table of verdicts with the columns of HEADER after the answer.

    rows: the subnetworks of its rows.
    """
    header, lines = [*table.header], []
    at = header.index("answer") + 1
    for line, subnetwork in zip(table.rows, rows, strict=True):
        lines.append([*line[:at], *_cells(study, subnetwork), *line[at:]])
    return Table(table.title, [*header[:at], *HEADER, *header[at:]], lines)


def _cells(study: StudyResults, subnetwork: Subnetwork) -> list[str]:
    """How many seeds have each answer, and the interval over seeds and examples."""
    facts = example_facts(study)
    answers = Counter(map(subnetwork.answer, facts.seeds(subnetwork.network).values()))
    counts = (f"{answer} {count}" for answer, count in sorted(answers.items()) if answer)
    pooled = facts.pooled.get(subnetwork.network.key)
    return [" · ".join(counts) or "—", interval_text(pooled[1:]) if pooled else "—"]


def test_set_table(study: StudyResults, labels: Sequence[str], rows: Sequence[Subnetwork]) -> Table:
    """A row per subnetwork and seed, with its comparison or why there is none.

    labels: the header of `Subnetwork.cells`. Trainings that kept no predictions are left out.
    """
    header = [*labels, "seed", "difference", "90 % interval", "δ", "examples", "answer"]
    header.append("McNemar: differs")
    facts = example_facts(study)
    lines = [
        [*subnetwork.cells, str(seed), *_numbers(subnetwork, training)]
        for subnetwork in rows
        for seed, training in facts.seeds(subnetwork.network).items()
        if training.problem != NONE_KEPT
    ]
    return Table("On this test set", header, lines)


def _numbers(subnetwork: Subnetwork, training: Training) -> list[str]:
    delta = "—" if subnetwork.delta is None else f"{subnetwork.delta:g}"
    n = "—" if training.n is None else f"{training.n:,}"
    if training.difference is None:
        return ["—", "—", delta, n, training.problem, "—"]
    difference, interval = training.difference[0], training.difference[1:]
    p = training.mcnemar_p
    differs = "differs" if p is not None and p < ALPHA else "—"
    answer = subnetwork.answer(training) or "δ not given"
    return [signed(difference), interval_text(interval), delta, n, answer, differs]


def missing_text(study: StudyResults) -> list[str]:
    """A sentence on the finished trainings that kept no predictions, if there are any."""
    trainings = example_facts(study).trainings.values()
    missing = sum(training.problem == NONE_KEPT for training in trainings)
    if not missing:
        return []
    count = f"{missing} of {len(trainings)} finished trainings"
    return [f"{count} kept no predictions, and are not compared on this test set."]


def example_table(study: StudyResults, rows: Sequence[Subnetwork]) -> pandas.DataFrame:
    """COLUMNS by network and seed, for results.csv."""
    facts = example_facts(study)
    values = [
        (*subnetwork.network.key, seed, True, *_values(subnetwork, training))
        for subnetwork in rows
        for seed, training in facts.seeds(subnetwork.network).items()
    ]
    keys = [*Network._fields, "seed", "primary"]
    table = pandas.DataFrame(values, columns=[*keys, *COLUMNS])
    return table.astype({"sparsity": float, "seed": int, "primary": bool, "example_n": "Int64"})


def _values(subnetwork: Subnetwork, training: Training) -> Iterator[object]:
    yield from training.difference or (None, None, None)
    yield subnetwork.answer(training) or training.problem
    yield training.n
    yield training.mcnemar_p
