"""The sparsities of the rounds."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float, float, int], float]] = {
    # share pruned after round k of what may be pruned in all, given (target, rate, k)
    "linear": lambda target, rate, k: rate * k,
    "geometric": lambda target, rate, k: 1 - (1 - rate) ** k,
    # Zhu & Gupta 2017 (arXiv:1710.01878), equation 1
    "cubic": lambda target, rate, k: target * (1 - (1 - min(1.0, k / math.ceil(target / rate))) ** 3),
}

MOST_ROUNDS = 1_000


def count(schedule: str, target: float, rate: float, start: float = 0.0) -> float:
    """How many rounds after round 0 lead from `start` to `target`, to be rounded up; or infinity."""
    if start >= target:
        return 0
    if schedule == "one_shot" or rate == 1:
        return 1
    near = max(start, target - rate / 100)
    if schedule == "geometric":
        return max(1.0, (math.log1p(-near) - math.log1p(-start)) / math.log1p(-rate))
    return max(1.0, (near - start) / rate if schedule == "linear" else (target - start) / (1 - start) / rate)


def sparsities(schedule: str, target: float, rate: float, start: float = 0.0) -> list[float]:
    """The sparsity of round 0, 1, … K as fractions of the prunable set; the last one is `target`.

    linear: `rate` of the original weights a round (the official code); geometric: `rate` of the
    remaining ones (the paper's text). A search that starts from a ticket starts at its sparsity.
    Call it where `count` is MOST_ROUNDS or less.
    """
    # Fractions are rounded to 12 digits so that 3 × 0.1 is 0.3 and the counts are those a reader computes.
    # A last step of less than a hundredth of the rate is not worth a round of its own.
    if start >= target:
        return [start]
    if schedule == "one_shot":
        return [start, target]
    share = (target - start) / (1 - start) if schedule != "linear" else target - start
    ladder, rounds = [start], math.ceil(count(schedule, target, rate, start))
    for k in range(1, rounds):
        done = SCHEDULES[schedule](share, rate, k)
        reached = start + done if schedule == "linear" else 1 - (1 - start) * (1 - done)
        if reached >= target - rate / 100:
            break
        ladder.append(round(reached, 12))
    return [*ladder, target]
