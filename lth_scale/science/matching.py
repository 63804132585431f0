"""Summaries of scores, the paper's rules of what matches, and verdicts as text.

The verdict itself is `noninferiority.verdict`. The paper's rules are printed beside it and decide
nothing. Scores are in any one unit in which more is better.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy

from lth_scale.science.noninferiority import NO_VERDICT, Scores, Verdict

# strict: section 2 and Table 4 of Chen et al. 2020 (arXiv:2007.12223); within_sd_full: caption of
# its Table 2.
RULES = {
    "strict": "mean ≥ full network's mean",
    "within_sd_full": "mean ≥ full network's mean − its standard deviation",
    "within_sd_max": "the same with the larger of the two standard deviations (the paper's Table 2 "
    "needs it for MRPC, SST-2, CoLA and MLM)",
}
PAPERS_RULES = "the paper's rules"


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


def summary(values: Scores) -> Summary:
    """Mean, standard deviation and count of scores."""
    scores = [float(x) for x in (values.values() if isinstance(values, Mapping) else values)]
    mean = statistics.fmean(scores) if scores else math.nan
    return Summary(mean, statistics.stdev(scores) if len(scores) > 1 else math.nan, len(scores))


def at_least(a: float, b: float) -> bool | None:
    """a ≥ b, equal up to rounding; None if either is NaN."""
    return None if math.isnan(a) or math.isnan(b) else a >= b or math.isclose(a, b, abs_tol=1e-12)


def paper_rules(sub: Scores, full: Scores) -> dict[str, bool | None]:
    """Whether `sub` matches `full` by each rule of the paper, in the order of RULES.

    None for a rule that lacks the scores or the standard deviation.
    """
    a, b = summary(sub), summary(full)
    larger = float(numpy.maximum(a.sd, b.sd))  # NaN if either is, unlike max()
    tolerances = {"strict": 0.0, "within_sd_full": b.sd, "within_sd_max": larger}
    return {rule: at_least(a.mean, b.mean - x) for rule, x in tolerances.items()}


def rules_text(matches: Mapping[str, bool | None]) -> str:
    """The rules by which it matches: `within_sd_full, within_sd_max`, `none` or `undecided`."""
    if all(decided is None for decided in matches.values()):
        return "undecided"
    names = [rule for rule, decided in matches.items() if decided]
    return ", ".join(names) or "none"


def signed(number: float, digits: int = 2) -> str:
    """`+0.14`, `−1.20` or `0.00`; `missing` for NaN."""
    rounded = round(number, digits)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return "missing" if math.isnan(number) else f"{sign}{abs(rounded):.{digits}f}"


def interval_text(interval: tuple[float, float], digits: int = 2) -> str:
    """`[−1.20, +0.14]`, or `—` without a test."""
    low, high = (signed(bound, digits) for bound in interval)
    return "—" if math.isnan(interval[0]) else f"[{low}, {high}]"


def p_text(p: float) -> str:
    """`0.412`, `<0.001`, or `—` without a test."""
    return "—" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def p_texts(verdict: Verdict) -> tuple[str, str]:
    """p and Holm's p of the side on which the difference lies: `0.012`, or `0.003 (worse)`."""
    if verdict.p_worse < verdict.p:
        return f"{p_text(verdict.p_worse)} (worse)", f"{p_text(verdict.holm_worse)} (worse)"
    return p_text(verdict.p), p_text(verdict.holm)


def n_text(verdict: Verdict) -> str:
    """`3 pairs`, or `3` for the smaller side of seeds that are not paired."""
    return f"{verdict.n} pair{'s' * (verdict.n != 1)}" if verdict.paired else str(verdict.n)


def answer_text(verdict: Verdict) -> str:
    """`matches`, `worse`, or `undecided: ` and the reason; or why there is no verdict."""
    if verdict.reason.startswith(NO_VERDICT):
        return verdict.reason
    return f"undecided: {verdict.reason}" if verdict.answer == "undecided" else verdict.answer


def short_answer(verdict: Verdict) -> str:
    """`matches`, `worse`, `undecided` or `no verdict`."""
    return "no verdict" if verdict.reason.startswith(NO_VERDICT) else verdict.answer


def facts(verdict: Verdict) -> str:
    """The numbers of a verdict in one line."""
    p, holm = p_texts(verdict)
    parts = [
        f"difference {signed(verdict.difference)}",
        f"{level_text(verdict)} interval {interval_text(verdict.interval)}",
        "δ not given" if verdict.delta is None else f"δ = {verdict.delta:g}",
        f"p {p}",
        f"Holm p {holm}",
        f"n = {n_text(verdict)}",
    ]
    return ", ".join(parts)


def level_text(verdict: Verdict) -> str:
    """The level of the interval that decides: `90 %`."""
    return f"{100 * (1 - 2 * verdict.alpha):g} %"


def further_seeds(verdict: Verdict) -> str:
    """How many more seeds would settle it: `12`, or `—` if that is unknown or above 1,000."""
    return "—" if verdict.more_seeds is None else str(verdict.more_seeds)


def describe(verdict: Verdict, sub: Scores, full: Scores) -> str:
    """Both networks' scores, the verdict with its numbers, and the paper's rules."""
    lines = {
        "subnetwork": f"{summary(sub):.2f}",
        "full network": f"{summary(full):.2f}",
        "answer": answer_text(verdict),
        "": facts(verdict),
        "95 % interval": interval_text(verdict.interval_95),
        "further seeds": further_seeds(verdict),
        PAPERS_RULES: rules_text(paper_rules(sub, full)),
    }
    return "\n".join(f"{name:<17} {text}" for name, text in lines.items())
