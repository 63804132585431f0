"""Networks that get no verdict: the dead and the untrained."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lth_scale.science.example_facts import score_bound
from lth_scale.science.noninferiority import FEWEST_SEEDS, lower_bound
from lth_scale.tasks.registry import best_trivial, metric_named
from lth_scale.tracking.stages import Row, has_constant_prediction, recorded_trivial, stage_of

PREDICTORS = {
    "constant": "the best constant prediction",
    "chance": "random predictions",
    "unigram": "the unigram model",
    "majority": "the most frequent tag",
    "outside": "a network that tags no word",
}
DEAD = "is dead (one prediction for all rows)"


def flaw_of_training(
    is_constant: bool,
    scores: Sequence[float],
    bounds: Sequence[float | None],
    baseline: tuple[str, float] | None,
    sign: int = 1,
) -> str:
    """Why a network gets no verdict, as a predicate such as `is dead (…)`; or "".

    Dead: it gives one prediction for all rows, with every seed. Untrained: it is not shown to be
    better than the best trivial predictor, by the lower one-sided 95 % bound of its mean over
    seeds, or below three seeds by that of each seed over the examples.

    scores: by seed, in the unit printed; sign: −1 if less is better. bounds: of each seed over the
    examples, in that unit, negated if less is better; None if unknown. baseline: the best trivial
    predictor and its score in the unit printed, if known.
    """
    if is_constant:
        return DEAD
    if baseline is None:
        return ""
    predictor, score = baseline
    if len(scores) >= FEWEST_SEEDS:
        bound, subject = lower_bound([sign * x for x in scores]), "its mean"
    else:
        bound, subject = _highest(bounds), "its score"
    if bound > sign * score:
        return ""
    trivial = f"{score:.1f}, the score of {PREDICTORS.get(predictor, predictor)}"
    return f"is untrained ({subject} is not shown to be better than {trivial})"


def flaw_of_rows(run: Path, rows: Sequence[Row], control: str = "none") -> str:
    """As `flaw_of_training`, of one network from its rows in results.json, one by seed.

    control: in place of the ticket, in a search.
    """
    metric = next(iter(rows[0]["eval"]))
    kind = metric_named(metric)
    scores = [kind.scale * row["eval"][metric] for row in rows]
    stages = [run / replace(stage_of(row), control=control).path for row in rows]
    bounds = (
        [score_bound(stage, metric, score) for stage, score in zip(stages, scores, strict=True)]
        if len(rows) < FEWEST_SEEDS
        else []
    )
    is_dead = all(map(has_constant_prediction, rows))
    baseline = best_trivial(recorded_trivial(rows), metric)
    return flaw_of_training(is_dead, scores, bounds, baseline, kind.sign)


def _highest(bounds: Sequence[float | None]) -> float:
    """The best seed's bound; ∞ if one is unknown, so that nothing is claimed."""
    known = [bound for bound in bounds if bound is not None]
    return max(known) if known and len(known) == len(bounds) else math.inf
