"""How the report prints numbers."""

import math

import pandas

from lth_scale.science.matching import Summary, summary


def percent(fraction: float) -> str:
    """`70 %`."""
    return f"{100 * fraction:.4g} %"


def signed(points: float) -> str:
    """`+0.14`, `−1.20` or `0.00`; `missing` for NaN."""
    text = f"{points:+.2f}".replace("-", "−") if round(points, 2) else "0.00"
    return "missing" if math.isnan(points) else text


def summarize(scores: pandas.Series) -> Summary:
    """Mean, standard deviation and number of the scores that are present."""
    return summary(scores.dropna().to_list())


def score_text(scores: pandas.Series) -> str:
    """`82.6 ± 0.2 (n = 3)`, or `(n = 2 of 3)` if a seed is missing; `—` if nothing was planned."""
    if scores.empty:
        return "—"
    result = summarize(scores)
    incomplete = 0 < result.n < len(scores)
    return str(result).replace(")", f" of {len(scores)})") if incomplete else str(result)


def difference(scores: pandas.Series, reference: pandas.Series) -> float:
    """The difference of the means; NaN if either is missing."""
    return summarize(scores).mean - summarize(reference).mean
