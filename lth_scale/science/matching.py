"""Whether a subnetwork matches the full network, by five rules, for scores in any one unit.

A rule that lacks the seeds or the variance for a decision leaves the comparison undecided.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

ALPHA = 0.05
# strict: section 2 and Table 4 of Chen et al. 2020 (arXiv:2007.12223); within_sd_full: caption of
# its Table 2.
RULES = {
    "strict": "mean ≥ full network's mean",
    "within_sd_full": "mean ≥ full network's mean − its standard deviation",
    "within_sd_max": "the same with the larger of the two standard deviations (the paper's Table 2 "
    "needs it for MRPC, SST-2, CoLA and MLM)",
    "welch": f"one-sided Welch t-test of a loss greater than δ; matches if p ≥ {ALPHA}",
    "paired": "the same with a t-test paired by seed",
}
WORDS = {True: "matches", False: "does not match", None: "undecided"}
Scores = Mapping[int, float] | Sequence[float]  # by seed, or without seeds


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof = 1; NaN if n < 2) and number of scores."""

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
    """The decision of one rule.

    matches: None if undecided. p: None for a rule without a test. sub, full: the compared scores
    of the subnetwork and the full network. delta: the tolerated loss, in the unit of the scores.
    """

    rule: str
    matches: bool | None
    p: float | None
    sub: Summary
    full: Summary
    delta: float


def summary(values: Scores) -> Summary:
    """Mean, standard deviation and count of scores."""
    scores = [float(x) for x in (values.values() if isinstance(values, Mapping) else values)]
    mean = statistics.fmean(scores) if scores else math.nan
    return Summary(mean, statistics.stdev(scores) if len(scores) > 1 else math.nan, len(scores))


def at_least(a: float, b: float) -> bool | None:
    """a ≥ b, equal up to rounding; None if either is NaN."""
    return None if math.isnan(a) or math.isnan(b) else a >= b or math.isclose(a, b, abs_tol=1e-12)


def verdicts(sub: Scores, full: Scores, delta: float) -> list[Verdict]:
    """The verdict of each rule on `sub` compared with `full`, in the order of RULES.

    delta: the tolerated loss, in the unit of the scores. `paired` requires both scores by seed and
    is omitted otherwise.
    """
    a, b = summary(sub), summary(full)
    larger = float(numpy.maximum(a.sd, b.sd))  # NaN if either is, unlike max()
    tolerances = {"strict": 0.0, "within_sd_full": b.sd, "within_sd_max": larger}
    results = [
        Verdict(rule, at_least(a.mean, b.mean - tolerance), None, a, b, delta)
        for rule, tolerance in tolerances.items()
    ]
    p = welch(a, b, delta)
    results.append(Verdict("welch", decide(p), p, a, b, delta))
    if isinstance(sub, Mapping) and isinstance(full, Mapping):
        seeds = [seed for seed in sub if seed in full]
        ours, theirs = [sub[seed] for seed in seeds], [full[seed] for seed in seeds]
        p = paired(ours, theirs, delta)
        results.append(Verdict("paired", decide(p), p, summary(ours), summary(theirs), delta))
    return results


def welch(sub: Summary, full: Summary, delta: float) -> float | None:
    """p of "not worse than `full` by more than `delta`": Welch's one-sided t-test (Welch 1947).

    A small p means worse. None if either has a single score or both have no variance.
    """
    if min(sub.n, full.n) < 2 or sub.sd == full.sd == 0:
        return None
    moments = (sub.mean + delta, sub.sd, sub.n, full.mean, full.sd, full.n)
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="less").pvalue)


def paired(sub: Sequence[float], full: Sequence[float], delta: float) -> float | None:
    """The same from the differences by seed: a one-sided paired t-test (Student 1908).

    None for fewer than two seeds, or if all differences are equal.
    """
    differences = numpy.asarray(sub) - numpy.asarray(full)
    if len(differences) < 2 or numpy.allclose(differences, differences[0], rtol=1e-12, atol=1e-12):
        return None
    return float(stats.ttest_1samp(differences, -delta, alternative="less").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for multiple testing (Holm 1979); None stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        adjusted[i] = largest = max(largest, min(1.0, (len(known) - rank) * p))
    return adjusted


def decide(p: float | None) -> bool | None:
    """True if p ≥ ALPHA, i.e. "worse" was not shown; None without a p-value."""
    return None if p is None else p >= ALPHA


def tested(name: str, p: float | None) -> str:
    """`, p = 0.412` or `, p < 0.001` for the name `p`; empty without a p-value."""
    return "" if p is None else f", {name} < 0.001" if p < 0.001 else f", {name} = {p:.3f}"


def describe(results: Sequence[Verdict], digits: int = 1) -> str:
    """Both networks' scores with `digits` decimals, then a line per rule."""
    first, spec = results[0], f".{digits}f"
    lines = [f"subnetwork      {first.sub:{spec}}", f"full network    {first.full:{spec}}"]
    for v in results:
        test = f"  δ = {v.delta:g}{tested('p', v.p)}" if v.rule in ("welch", "paired") else ""
        lines.append(f"{v.rule:<15} {WORDS[v.matches]:<14}  n = {v.sub.n} and {v.full.n}{test}")
    return "\n".join(lines)
