"""Is a subnetwork matching the full network? Five rules, each with its name, for scores in any one unit.

A rule that cannot be told (one seed, no spread) says so instead of guessing.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

ALPHA = 0.05
RULES = {  # the first: section 2 and Table 4 of Chen et al. 2020 (arXiv:2007.12223); the second: caption of its Table 2
    "strict": "mean ≥ full mean",
    "within_sd_full": "mean ≥ full mean − its sd",
    "within_sd_max": "the larger of the two sds instead (the paper's own Table 2 needs it for MRPC, SST-2, CoLA, MLM)",
    "welch": f"a one-sided test of “worse by more than δ”, which matches where p ≥ {ALPHA}",
    "paired": "the same by seed",
}
WORDS = {True: "matches", False: "does not match", None: "cannot be told"}
Scores = Mapping[int, float] | Sequence[float]  # by seed, or without


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof = 1; NaN where n < 2) and number of scores."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        return format(self, ".1f")

    def __format__(self, spec: str) -> str:
        """`82.6 ± 0.2 (n = 5)`; `spec` formats both numbers."""
        spread = f" ± {self.sd:{spec}}" if self.n > 1 else ""
        return f"{self.mean:{spec}}{spread} (n = {self.n})" if self.n else "missing"


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


def summary(values: Scores) -> Summary:
    """Mean, standard deviation and count; a mapping's values are its scores."""
    scores = [float(v) for v in (values.values() if isinstance(values, Mapping) else values)]
    mean = statistics.fmean(scores) if scores else math.nan
    return Summary(mean, statistics.stdev(scores) if len(scores) > 1 else math.nan, len(scores))


def at_least(a: float, b: float) -> bool | None:
    """a ≥ b, with equal scores equal whatever the order they were summed in; None where either is unknown."""
    return None if math.isnan(a) or math.isnan(b) else a >= b or math.isclose(a, b, abs_tol=1e-12)


def verdicts(sub: Scores, full: Scores, delta: float) -> list[Verdict]:
    """Each rule's verdict on `sub` against `full`, in the order of RULES; `delta` in the unit of the scores.

    `paired` is among them where both are given by seed.
    """
    a, b = summary(sub), summary(full)
    larger = float(numpy.maximum(a.sd, b.sd))  # NaN where either is, which max() may lose
    allowed = {"strict": 0.0, "within_sd_full": b.sd, "within_sd_max": larger}
    result = [
        Verdict(rule, at_least(a.mean, b.mean - loss), None, a, b, delta)
        for rule, loss in allowed.items()
    ]
    p = welch(a, b, delta)
    result.append(Verdict("welch", decide(p), p, a, b, delta))
    if isinstance(sub, Mapping) and isinstance(full, Mapping):
        seeds = [seed for seed in sub if seed in full]
        ours, theirs = [sub[seed] for seed in seeds], [full[seed] for seed in seeds]
        p = paired(ours, theirs, delta)
        result.append(Verdict("paired", decide(p), p, summary(ours), summary(theirs), delta))
    return result


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
    """p-values adjusted for testing them all (Holm 1979, step down); None stays and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def decide(p: float | None) -> bool | None:
    """Matching under a test: p of being worse is not below ALPHA; None where there is no p."""
    return None if p is None else p >= ALPHA


def tested(name: str, p: float | None) -> str:
    """`, p = 0.412` or `, p < 0.001` for the name `p`; empty where there is no p."""
    return "" if p is None else f", {name} < 0.001" if p < 0.001 else f", {name} = {p:.3f}"


def describe(results: Sequence[Verdict], digits: int = 1) -> str:
    """Mean ± sd and n of both networks, then a line a rule; `digits` after the point of a score."""
    first, spec = results[0], f".{digits}f"
    lines = [f"subnetwork      {first.sub:{spec}}", f"full network    {first.full:{spec}}"]
    for v in results:
        test = f"  δ = {v.delta:g}{tested('p', v.p)}" if v.rule in ("welch", "paired") else ""
        lines.append(f"{v.rule:<15} {WORDS[v.matches]:<14}  n = {v.sub.n} and {v.full.n}{test}")
    return "\n".join(lines)
