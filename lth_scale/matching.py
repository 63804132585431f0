"""Is a subnetwork matching the full network? Five rules, each with its name, for scores in any one unit.

Chen et al. 2020 (arXiv:2007.12223), section 2, asks for a score at least the full network's; its Table 2 allows
one standard deviation. A rule that cannot be told (one seed, no spread) says so instead of guessing.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

ALPHA = 0.05
RULES = ("strict", "within_sd_full", "within_sd_max", "welch", "paired")
WORDS = {True: "matches", False: "does not match", None: "cannot be told"}
Scores = Mapping[int, float] | Sequence[float]  # by seed, or without


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof = 1; NaN where n < 2) and number of scores."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """`82.6 ± 0.2 (n = 5)`; `spec` formats both numbers (default .1f)."""
        if not self.n:
            return "missing"
        spread = f" ± {self.sd:{spec or '.1f'}}" if self.n > 1 else ""
        return f"{self.mean:{spec or '.1f'}}{spread} (n = {self.n})"


@dataclass(frozen=True)
class Verdict:
    """What a rule says: matches is None where it cannot be told; p is None for a rule without a test.

    sub and full summarise the scores that the rule compared, `delta` the tolerated loss in their unit.
    """

    rule: str
    matches: bool | None
    p: float | None
    sub: Summary
    full: Summary
    delta: float

    @property
    def n_sub(self) -> int:
        """Scores of the subnetwork."""
        return self.sub.n

    @property
    def n_full(self) -> int:
        """Scores of the full network."""
        return self.full.n

    @property
    def words(self) -> str:
        """`matches`, `does not match` or `cannot be told`."""
        return WORDS[self.matches]


def summary(values: Scores) -> Summary:
    """Mean, standard deviation and count; a mapping's values are its scores."""
    scores = _list(values)
    mean = statistics.fmean(scores) if scores else math.nan
    return Summary(mean, statistics.stdev(scores) if len(scores) > 1 else math.nan, len(scores))


def at_least(a: float, b: float) -> bool | None:
    """a ≥ b, with equal scores equal whatever the order they were summed in; None where either is unknown."""
    return None if math.isnan(a) or math.isnan(b) else a >= b or math.isclose(a, b, rel_tol=1e-12)


def verdicts(sub: Scores, full: Scores, delta: float) -> list[Verdict]:
    """Each rule's verdict on `sub` against `full`, in the order of RULES; `delta` in the unit of the scores.

    `paired` is among them where both are given by seed.
    """
    a, b = summary(sub), summary(full)
    result = [Verdict(rule.__name__, rule(a, b), None, a, b, delta) for rule in (strict, within_sd_full, within_sd_max)]
    p = welch(a, b, delta)
    result.append(Verdict("welch", judge(p), p, a, b, delta))
    if isinstance(sub, Mapping) and isinstance(full, Mapping):
        seeds = [seed for seed in sub if seed in full]
        ours, theirs = [sub[seed] for seed in seeds], [full[seed] for seed in seeds]
        p = paired(ours, theirs, delta)
        result.append(Verdict("paired", judge(p), p, summary(ours), summary(theirs), delta))
    return result


def strict(sub: Summary, full: Summary) -> bool | None:
    """Mean ≥ full mean: the definition of matching in section 2 of the paper, and the rule of its Table 4."""
    return at_least(sub.mean, full.mean)


def within_sd_full(sub: Summary, full: Summary) -> bool | None:
    """Mean ≥ full mean − sd of full: "within one standard deviation of the unpruned BERT", caption of Table 2."""
    return at_least(sub.mean, full.mean - full.sd)


def within_sd_max(sub: Summary, full: Summary) -> bool | None:
    """Mean ≥ full mean − the larger of the two sds: what Table 2's own numbers need (MRPC, SST-2, CoLA, MLM)."""
    larger = float(numpy.maximum(sub.sd, full.sd))  # NaN where either is, which max() may lose
    return at_least(sub.mean, full.mean - larger)


def welch(sub: Summary, full: Summary, delta: float) -> float | None:
    """p of "worse than full by more than delta": one-sided t-test with unequal variances (Welch 1947).

    A small p says worse. None where either side has one score, or neither has any spread.
    """
    if min(sub.n, full.n) < 2 or sub.sd == full.sd == 0:
        return None
    sides = (sub.mean + delta, sub.sd, sub.n, full.mean, full.sd, full.n)
    return float(stats.ttest_ind_from_stats(*sides, equal_var=False, alternative="less").pvalue)


def paired(sub: Sequence[float], full: Sequence[float], delta: float) -> float | None:
    """p of "worse than full by more than delta", from the differences seed by seed (Student 1908).

    None where there are fewer than two seeds, or all differences are equal.
    """
    difference = numpy.asarray(sub) - numpy.asarray(full)
    if len(difference) < 2 or numpy.allclose(difference, difference[0], rtol=1e-12, atol=1e-12):
        return None
    return float(stats.ttest_1samp(difference, -delta, alternative="less").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for testing them all (Holm 1979, step down); None and NaN stay and do not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def judge(p: float | None) -> bool | None:
    """Matching under a test: p of being worse is not below ALPHA; None where there is no p."""
    return None if p is None or math.isnan(p) else p >= ALPHA


def describe(results: Sequence[Verdict], digits: int = 1) -> str:
    """Mean ± sd and n of both networks, then a line a rule; `digits` after the point of a score."""
    spec = f".{digits}f"
    first = results[0]
    lines = [f"subnetwork      {first.sub:{spec}}", f"full network    {first.full:{spec}}"]
    for v in results:
        test = "" if v.rule not in ("welch", "paired") else f"  δ = {v.delta:g}, p = {_number(v.p)}"
        lines.append(f"{v.rule:<15} {v.words:<14}  n = {v.n_sub} and {v.n_full}{test}")
    return "\n".join(lines)


def _list(values: Scores) -> list[float]:
    return [float(v) for v in (values.values() if isinstance(values, Mapping) else values)]


def _number(p: float | None) -> str:
    return "none" if p is None else f"{p:.3g}"
