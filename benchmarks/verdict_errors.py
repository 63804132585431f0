"""How often is a verdict wrong? Simulations of `noninferiority` with a known truth.

`python benchmarks/verdict_errors.py --draws 100000 --picture docs/images/verdict_errors.svg` prints
the share of false *matches* at a true loss of exactly δ and the power against other losses, and
draws them. `python benchmarks/verdict_errors.py --coverage --draws 500` prints the coverage of the
bootstrap over seeds and examples.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy
from scipy import special

from lth_scale.science.example_scores import examples_of
from lth_scale.science.example_tests import compare_hierarchically, resample
from lth_scale.science.noninferiority import ALPHA, noninferiority_p

SEEDS = (3, 5, 10)
SPREADS = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0)  # sd of the subnetwork ÷ sd of the full network
RATE_SPREADS = (0.01, 0.05)  # sd over seeds of the share of right examples
LOSSES = numpy.linspace(-1.0, 2.0, 13)  # in units of δ


def false_matches(n: int, spread: float, paired: bool, draws: int, correlation: float) -> float:
    """The share of *matches* where the true loss is δ = 1 and the full network's sd is 1."""
    sub, full = scores(n, -1.0, spread, draws, correlation)
    return float((noninferiority_p(sub, full, 1.0, paired) < ALPHA).mean())


def scores(n: int, difference: float, spread: float, draws: int, correlation: float) -> tuple:
    """Normal scores of shape (draws, n) of both networks, correlated by seed."""
    generator = numpy.random.default_rng(0)
    shared, own, other = generator.normal(size=(3, draws, n))
    common = math.sqrt(correlation) * shared
    sub, full = (common + math.sqrt(1 - correlation) * noise for noise in (own, other))
    return difference + spread * sub, full


def size_table(draws: int) -> list[str]:
    """A row for each test and number of seeds."""
    lines = ["| test | n | " + " | ".join(f"{spread:g}" for spread in SPREADS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(SPREADS))
    for paired, correlation in ((False, 0.0), (True, 0.0), (True, 0.5)):
        name = f"paired, correlation {correlation:g}" if paired else "Welch"
        for n in SEEDS:
            rates = [false_matches(n, spread, paired, draws, correlation) for spread in SPREADS]
            lines.append(f"| {name} | {n} | {' | '.join(f'{100 * x:.2f} %' for x in rates)} |")
    return lines


def power(n: int, loss: float, sd: float, draws: int) -> float:
    """The share of *matches* at a true loss in units of δ = 1, for both networks' sd."""
    sub, full = scores(n, 0.0, 1.0, draws, 0.0)
    return float((noninferiority_p(sd * sub - loss, sd * full, 1.0) < ALPHA).mean())


def coverage(seeds: int, sd: float, draws: int) -> float:
    """How often the 90 % interval over seeds and examples holds the true difference, 0.

    Both networks get 300 examples right with 80 % on average over seeds; sd: of that over seeds.
    Each example is as hard for all of them: the logit of its share is normal with sd 1.
    """
    generator, hits = numpy.random.default_rng(0), 0
    for _ in range(draws):
        noise, hardness = generator.normal(size=(2 * seeds, 1)), generator.normal(size=300)
        rates = special.expit(special.logit(0.8) * 1.16 + sd / 0.135 * noise + hardness)
        right = generator.random((2 * seeds, 300)) < rates
        scores = resample([examples_of({"accuracy": one}, "accuracy") for one in right])
        _, low, high = compare_hierarchically(0.0, scores[:seeds] - scores[seeds:])
        hits += low <= 0 <= high
    return hits / draws


def coverage_table(draws: int) -> list[str]:
    """A row for each number of seeds, with the standard error of the simulation."""
    lines = ["| n | " + " | ".join(f"sd {100 * sd:g} points" for sd in RATE_SPREADS) + " |"]
    lines.append("| --- |" + " --- |" * len(RATE_SPREADS))
    for n in SEEDS[1:]:
        shares = [coverage(n, sd, draws) for sd in RATE_SPREADS]
        errors = [math.sqrt(x * (1 - x) / draws) for x in shares]
        cells = (f"{100 * x:.1f} ± {100 * e:.1f} %" for x, e in zip(shares, errors, strict=True))
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return lines


def draw(path: Path, draws: int) -> None:
    """Draw false matches by the ratio of the spreads, and power by the true loss."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for n in SEEDS:
        rates = [100 * false_matches(n, spread, False, draws, 0.0) for spread in SPREADS]
        left.plot(SPREADS, rates, marker="o", label=f"n = {n}")
        for sd, style in ((0.3, "-"), (1.0, "--")):
            curve = [100 * power(n, loss, sd, draws) for loss in LOSSES]
            right.plot(LOSSES, curve, style, color=f"C{SEEDS.index(n)}", label=f"{n}, sd {sd:g} δ")
    left.axhline(100 * ALPHA, color="grey", linewidth=0.8)
    left.set(xscale="log", ylim=(0, 7), xlabel="sd of the subnetwork ÷ sd of the full network")
    left.set(ylabel="false matches at a true loss of δ, %", title="Errors of Welch's test")
    right.axvline(1.0, color="grey", linewidth=0.8)
    right.set(xlabel="true loss ÷ δ", ylabel="matches, %", title="Power")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.coverage:
        print("\n".join(coverage_table(given.draws)))
        return
    print("\n".join(size_table(given.draws)))
    for n in SEEDS:
        row = " ".join(f"{100 * power(n, 0.0, sd, given.draws):.1f} %" for sd in (0.2, 0.5, 1, 2))
        print(f"power at no loss, n = {n}, sd of 0.2, 0.5, 1 and 2 δ: {row}")
    if given.picture:
        draw(given.picture, given.draws)


if __name__ == "__main__":
    main()
