"""The sparsities of the rounds."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float, float, int], float]] = {
    # share pruned after round k of what may be pruned in all, given (target, rate, k)
    "linear": lambda target, rate, k: rate * k,
    "geometric": lambda target, rate, k: 1 - (1 - rate) ** k,
    "one_shot": lambda target, rate, k: target if k else 0.0,
    # Zhu & Gupta 2017 (arXiv:1710.01878), equation 1
    "cubic": lambda target, rate, k: target * (1 - (1 - min(1.0, k / math.ceil(target / rate))) ** 3),
}


def sparsities(schedule: str, target: float, rate: float, start: float = 0.0) -> list[float]:
    """The sparsity of round 0, 1, … K as fractions of the prunable set; the last one is `target`.

    linear: `rate` of the original weights a round (the official code); geometric: `rate` of the
    remaining ones (the paper's text). A search that starts from a ticket starts at its sparsity.
    """
    # Fractions are rounded to 12 digits so that 3 × 0.1 is 0.3 and the counts are those a reader computes.
    # A last step of less than a hundredth of the rate is not worth a round of its own.
    if start >= target:
        return [start]
    share = (target - start) / (1 - start) if schedule != "linear" else target - start
    ladder, k = [start], 1
    while ladder[-1] < target:
        done = SCHEDULES[schedule](share, rate, k)
        reached = start + done if schedule == "linear" else 1 - (1 - start) * (1 - done)
        ladder.append(target if reached >= target - rate / 100 else round(reached, 12))
        k += 1
    return ladder
