"""Is a subnetwork no worse than the full network? Non-inferiority over seeds.

The burden of proof is on the claim: a network *matches* if "worse by δ or more" is rejected, it is
*worse* if "worse by less than δ, or better" is rejected, and everything else is *undecided*. Both
are one-sided t-tests (Student 1908; Welch 1947) of the difference d = subnetwork − full network
against −δ. Scores are in any one unit in which more is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy
from numpy.typing import ArrayLike
from scipy import special, stats

ALPHA = 0.05
FEWEST_SEEDS = 3
NO_VERDICT = "no verdict: "  # how the reason of a verdict without an answer starts
MOST_SEEDS = 1000  # beyond which the number of further seeds is not computed
Answer = Literal["matches", "worse", "undecided"]
Scores = Mapping[int, float] | Sequence[float]  # by seed, or without seeds


@dataclass(frozen=True)
class Verdict:
    """The answer to: is the subnetwork no worse than the full network by `delta` or more?

    reason: one clause in plain words. difference: mean of subnetwork − full network. interval: the
    two-sided 1 − 2α confidence interval of the difference, which decides; interval_95: the 95 %
    one. p: of H₀ d ≤ −δ, small if it matches; p_worse: of H₀ d ≥ −δ, small if it is worse. n:
    pairs, or seeds on the smaller side. more_seeds: how many further seeds on each side would
    settle it at the spread seen; 0 if it is settled, None if that is unknown or above 1,000. holm
    and holm_worse: p and p_worse corrected for a family (`correct`). delta, difference and
    intervals are in the unit of the scores. NaN where there is no test. estimate: what they are
    computed from, if there is a test.
    """

    answer: Answer
    reason: str
    n: int
    delta: float | None
    paired: bool
    alpha: float
    difference: float
    interval: tuple[float, float] = (math.nan, math.nan)
    interval_95: tuple[float, float] = (math.nan, math.nan)
    p: float = math.nan
    p_worse: float = math.nan
    more_seeds: int | None = None
    holm: float = math.nan
    holm_worse: float = math.nan
    estimate: "_Estimate | None" = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class _Estimate:
    """Mean difference, and the variances and sizes of its samples: one if paired, else two."""

    difference: numpy.ndarray
    variances: list[numpy.ndarray]
    sizes: list[int]

    @classmethod
    def of(cls, sub: ArrayLike, full: ArrayLike, paired: bool) -> "_Estimate":
        """From scores of shape (…, seeds)."""
        sub, full = numpy.asarray(sub, float), numpy.asarray(full, float)
        samples = [sub - full] if paired else [sub, full]
        variances = [sample.var(axis=-1, ddof=1) for sample in samples]
        difference = sub.mean(-1) - full.mean(-1)
        return cls(difference, variances, [sample.shape[-1] for sample in samples])

    def precision(self, more: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Standard error and degrees of freedom, with `more` further seeds of the same spread."""
        sizes = [size + more for size in self.sizes]
        parts = [variance / size for variance, size in zip(self.variances, sizes, strict=True)]
        total = numpy.asarray(sum(parts))
        shares = (part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
        return numpy.sqrt(total), total**2 / numpy.asarray(sum(shares))  # Welch–Satterthwaite

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided confidence interval of the difference."""
        error, df = self.precision()
        margin = stats.t.ppf((1 + level) / 2, df) * error
        return float(self.difference - margin), float(self.difference + margin)

    def p_value(self, delta: float) -> numpy.ndarray:
        """Of H₀ d ≤ −δ."""
        error, df = self.precision()
        return numpy.asarray(stats.t.sf((self.difference + delta) / error, df))


def noninferiority_p(
    sub: ArrayLike, full: ArrayLike, delta: float, paired: bool = False
) -> numpy.ndarray:
    """p-values of H₀ d ≤ −δ for scores of shape (…, seeds); 1 − p is that of H₀ d ≥ −δ."""
    return _Estimate.of(sub, full, paired).p_value(delta)


def verdict(
    sub: Scores, full: Scores, delta: float | None, paired: bool = False, alpha: float = ALPHA
) -> Verdict:
    """Test whether a subnetwork is no worse than the full network by `delta` or more.

    sub, full: scores by seed, or in any order; more is better. delta: the tolerated loss in the
    unit of the scores, not negative; None if the metric has none: undecided. paired: compare seed
    by seed; of mappings, the seeds that both have, otherwise by position. alpha: of each one-sided
    test. One comparison: `correct` adjusts several. Undecided, with the reason, below three seeds
    a side (or pairs) and without any spread. Raises ValueError for a score, `delta` or `alpha` out
    of range, and for `paired` with sequences of different lengths.
    """
    ours, theirs = _samples(sub, full, paired)
    _check(ours + theirs, delta, alpha)
    n = min(len(ours), len(theirs))
    unknown = Verdict(
        answer="undecided",
        reason=_obstacle(ours, theirs, delta, paired),
        n=n,
        delta=delta,
        paired=paired,
        alpha=alpha,
        difference=float(numpy.mean(ours) - numpy.mean(theirs)) if n else math.nan,
        more_seeds=max(0, FEWEST_SEEDS - n) or None,
    )
    if n < FEWEST_SEEDS or _is_constant(ours, theirs, paired):
        return unknown
    estimate = _Estimate.of(ours, theirs, paired)
    known = replace(
        unknown,
        difference=float(estimate.difference),
        interval=estimate.interval(1 - 2 * alpha),
        interval_95=estimate.interval(0.95),
        estimate=estimate,
    )
    if delta is None:
        return known
    p = float(estimate.p_value(delta))
    more = _further_seeds(estimate, delta, alpha)
    return _decide(replace(known, p=p, p_worse=1 - p, more_seeds=more))


def correct(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Correct the verdicts of one family by Holm's method (Holm 1979), *matches* and *worse* each.

    A verdict without a test stays as it is and is not counted. Of one that is undecided,
    more_seeds becomes the number that settles it at α ÷ tests, whatever the others are.
    """
    matches = holm([verdict.p for verdict in verdicts])
    worse = holm([verdict.p_worse for verdict in verdicts])
    tests = sum(not math.isnan(p) for p in matches)
    return [
        _corrected(replace(verdict, holm=p, holm_worse=p_worse), tests)
        for verdict, p, p_worse in zip(verdicts, matches, worse, strict=True)
    ]


def _corrected(verdict: Verdict, tests: int) -> Verdict:
    verdict = _decide(verdict)
    if verdict.answer != "undecided" or verdict.estimate is None or verdict.delta is None:
        return verdict
    more = _further_seeds(verdict.estimate, verdict.delta, verdict.alpha / tests)
    return replace(verdict, more_seeds=more)


def lower_bound(scores: Scores, alpha: float = ALPHA) -> float:
    """The one-sided 1 − α lower confidence bound of the mean over seeds; more is better.

    The mean itself without any spread, and −∞ below three seeds.
    """
    values = [*(scores.values() if isinstance(scores, Mapping) else scores)]
    n = len(values)
    if n < FEWEST_SEEDS:
        return -math.inf
    margin = stats.t.isf(alpha, n - 1) * numpy.std(values, ddof=1) / math.sqrt(n)
    return float(numpy.mean(values) - margin)


def without_verdict(verdict: Verdict, reason: str) -> Verdict:
    """The same comparison without an answer and without a test, for a reason."""
    return replace(
        verdict,
        answer="undecided",
        reason=NO_VERDICT + reason,
        p=math.nan,
        p_worse=math.nan,
        more_seeds=None,
        estimate=None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple testing (Holm 1979); NaN stays NaN and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def _samples(sub: Scores, full: Scores, paired: bool) -> tuple[list[float], list[float]]:
    if isinstance(sub, Mapping) and isinstance(full, Mapping) and paired:
        seeds = [seed for seed in sub if seed in full]
        return [float(sub[seed]) for seed in seeds], [float(full[seed]) for seed in seeds]
    ours, theirs = (
        [float(x) for x in (scores.values() if isinstance(scores, Mapping) else scores)]
        for scores in (sub, full)
    )
    if paired and len(ours) != len(theirs):
        raise ValueError(
            f"paired=True with {len(ours)} and {len(theirs)} scores: pass mappings from seed to "
            "score, or paired=False"
        )
    return ours, theirs


def _check(scores: Sequence[float], delta: float | None, alpha: float) -> None:
    if not all(map(math.isfinite, scores)):
        raise ValueError("a score is NaN or infinite: leave it out, or pass another")
    if delta is not None and not (math.isfinite(delta) and delta >= 0):
        raise ValueError(f"delta={delta}: pass a finite number that is not negative")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha}: pass a number between 0 and 0.5")


def _is_constant(ours: Sequence[float], theirs: Sequence[float], paired: bool) -> bool:
    """True if nothing varies, up to rounding."""
    samples = [numpy.subtract(ours, theirs)] if paired else [ours, theirs]
    scale = max(map(abs, (*ours, *theirs)))
    return all(numpy.ptp(sample) <= 1e-12 * max(scale, 1e-300) for sample in samples)


def _obstacle(
    ours: Sequence[float], theirs: Sequence[float], delta: float | None, paired: bool
) -> str:
    """Why there is no test."""
    n = min(len(ours), len(theirs))
    if n < FEWEST_SEEDS:
        what = f"{n} {'pair' if paired else 'seed'}{'s' * (n != 1)}"
        return f"{what}{'' if paired else ' a side'}, and a test needs {FEWEST_SEEDS}"
    if _is_constant(ours, theirs, paired):
        return f"no spread between {'differences' if paired else 'seeds'}, so nothing to test with"
    return "the metric has no default δ: give --delta" if delta is None else ""


def _further_seeds(estimate: _Estimate, delta: float, alpha: float) -> int | None:
    """The smallest number of further seeds that settles it at the same difference and spread."""

    def settled(more: int) -> bool:
        error, df = estimate.precision(more)
        return bool(abs(estimate.difference + delta) > -special.stdtrit(df, alpha) * error)

    if not settled(MOST_SEEDS):
        return None
    low, high = -1, MOST_SEEDS  # settled(high), and not settled(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def _decide(verdict: Verdict) -> Verdict:
    """The verdict with the answer of its p-values, the corrected ones if it has them."""
    if math.isnan(verdict.p):
        return verdict
    corrected = not math.isnan(verdict.holm)
    p, p_worse = (verdict.holm, verdict.holm_worse) if corrected else (verdict.p, verdict.p_worse)
    after = " after Holm's correction" if corrected else ""
    margin = f"δ = {verdict.delta:g}"
    if p < verdict.alpha:
        return replace(verdict, answer="matches", reason=f"shown to lose less than {margin}{after}")
    if p_worse < verdict.alpha:
        return replace(verdict, answer="worse", reason=f"shown to lose more than {margin}{after}")
    if min(verdict.p, verdict.p_worse) < verdict.alpha:
        return replace(verdict, answer="undecided", reason=f"not significant{after}")
    level = 100 * (1 - 2 * verdict.alpha)
    reason = f"the {level:g} % interval includes −{margin.removeprefix('δ = ')}"
    return replace(verdict, answer="undecided", reason=reason)
