"""What the examples of the test set say about the networks of a study.

Everything here is independent of δ, and small enough to be saved in place of the predictions.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy

from lth_scale.science.example_scores import Examples, examples_of
from lth_scale.science.example_tests import (
    FEWEST_SEEDS,
    Difference,
    compare_hierarchically,
    compare_resampled,
    compare_shares,
    mcnemar_p,
    resample,
    resampled_bound,
    share_bound,
)
from lth_scale.science.results import Network, StudyResults
from lth_scale.tasks.registry import metric_named
from lth_scale.tracking import predictions

NONE_KEPT = "no predictions were kept"
DAMAGED = "predictions.safetensors is damaged"
OTHER_SCORE = "the predictions do not give the score"
OTHER_ROWS = "other rows than the full network's"
FULL_MISSING = "the full network of this seed is missing"
ROUNDING = 1e-5  # between a score and that of its predictions, as fractions

Key = tuple[Network, int]  # a training: its network and its seed


@dataclass(frozen=True)
class Training:
    """What its examples say about one training; scores are in the unit printed, more is better.

    problem: why something is missing, or "". n: the number of examples. bound: the lower one-sided
    95 % bound of its score. difference: from the full network of the same seed, with the 90 %
    interval. mcnemar_p: of the exact test that both are right equally often. None if missing.
    """

    problem: str = ""
    n: int | None = None
    bound: float | None = None
    difference: Difference | None = None
    mcnemar_p: float | None = None


@dataclass(frozen=True)
class ExampleFacts:
    """trainings: all finished ones. pooled: networks by seeds and examples, from five seeds on."""

    trainings: Mapping[Key, Training]
    pooled: Mapping[Network, Difference]

    def seeds(self, network: Network) -> Mapping[int, Training]:
        """The finished trainings of a network by seed."""
        return self._by_network.get(network.key, {})

    @functools.cached_property
    def _by_network(self) -> Mapping[Network, Mapping[int, Training]]:
        by_network: dict[Network, dict[int, Training]] = defaultdict(dict)
        for (network, seed), training in self.trainings.items():
            by_network[network][seed] = training
        return by_network

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it: by network, and trainings also by seed."""
        trainings: dict[str, dict[str, Any]] = defaultdict(dict)
        for (network, seed), training in self.trainings.items():
            known = {name: x for name, x in asdict(training).items() if x not in (None, "")}
            trainings[_text(network)][str(seed)] = known
        pooled = {_text(network): [*difference] for network, difference in self.pooled.items()}
        return {"trainings": trainings, "pooled": pooled}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "ExampleFacts":
        """From what `to_json` returned. Raises one of DAMAGE if it is something else."""
        trainings = {
            (_network(text), int(seed)): _training(**values)
            for text, by_seed in saved["trainings"].items()
            for seed, values in by_seed.items()
        }
        pooled = {_network(text): Difference(*numbers) for text, numbers in saved["pooled"].items()}
        return cls(trainings, pooled)


def _text(network: Network) -> str:
    return " ".join(map(str, network))


def _network(text: str) -> Network:
    task, sparsity, *others = text.split(" ")
    return Network(task, float(sparsity), *others)


def _training(difference: list[float] | None = None, **others: Any) -> Training:
    return Training(difference=Difference(*difference) if difference else None, **others)


@functools.lru_cache(maxsize=4)  # several tables ask for those of the same study
def example_facts(study: StudyResults) -> ExampleFacts:
    """As saved, or from the predictions of a study's trainings."""
    if study.example_facts is not None:
        saved = ExampleFacts.from_json(study.example_facts)
        none = {key: Training(NONE_KEPT) for key in study.stages}
        return replace(saved, trainings={**none, **saved.trainings})
    trainings: dict[Key, Training] = {}
    pooled: dict[Network, Difference] = {}
    for task in study.tasks:
        evaluations = _Evaluations.of(study, task)
        trainings |= {key: evaluations.training(key) for key in study.stages if key[0].task == task}
        pooled |= evaluations.pooled()
    return ExampleFacts(trainings, pooled)


@dataclass(frozen=True)
class _Evaluations:
    """Those of one task: examples by training, or the problem with them.

    factor: from a score to the unit printed, negative if less is better. draws: resampled scores in
    that unit, where a test needs them.
    """

    factor: int
    examples: Mapping[Key, Examples]
    problems: Mapping[Key, str]
    draws: Mapping[Key, numpy.ndarray]

    @classmethod
    def of(cls, study: StudyResults, task: str) -> "_Evaluations":
        keys = [key for key in study.stages if key[0].task == task]
        metric = study.metric(task)
        read = {key: _read(study.stages[key], metric, study.scores(key[0])[key[1]]) for key in keys}
        examples = {key: found for key, found in read.items() if isinstance(found, Examples)}
        problems = {key: found for key, found in read.items() if isinstance(found, str)}
        factor = _factor(metric)
        return cls(factor, examples, problems, {key: factor * x for key, x in _draws(examples)})

    def training(self, key: Key) -> Training:
        """What is known about one training."""
        if key in self.problems:
            return Training(self.problems[key])
        examples = self.examples[key]
        known = Training(
            n=len(examples.rows), bound=_bound(examples, self.draws.get(key), self.factor)
        )
        full = (key[0].full.key, key[1])
        if full == key:
            return known
        if problem := self._obstacle(key, full):
            return replace(known, problem=problem)
        other = self.examples[full]
        if examples.right is None or other.right is None:
            return replace(known, difference=self._resampled(key, full))
        fractions = compare_shares(examples.right, other.right)
        difference = Difference(*(self.factor * x for x in fractions))
        p = mcnemar_p(examples.right, other.right)
        return replace(known, difference=difference, mcnemar_p=p)

    def _obstacle(self, key: Key, full: Key) -> str:
        """Why a training cannot be compared with the full network of its seed, or ""."""
        if full in self.problems:
            return f"the full network of this seed: {self.problems[full]}"
        if full not in self.examples:
            return FULL_MISSING
        alike = numpy.array_equal(self.examples[key].rows, self.examples[full].rows)
        return "" if alike else OTHER_ROWS

    def _resampled(self, key: Key, full: Key) -> Difference:
        return compare_resampled(self._difference(key, full), self.draws[key] - self.draws[full])

    def _difference(self, key: Key, full: Key) -> float:
        return self.factor * (self.examples[key].value - self.examples[full].value)

    def pooled(self) -> dict[Network, Difference]:
        """Subnetworks compared over seeds and examples, from five seeds on."""
        pairs: dict[Network, list[tuple[Key, Key]]] = defaultdict(list)
        for key in self.draws:
            full = (key[0].full.key, key[1])
            if key != full and not self._obstacle(key, full):
                pairs[key[0]].append((key, full))
        return {
            network: self._hierarchical(by_seed)
            for network, by_seed in pairs.items()
            if len(by_seed) >= FEWEST_SEEDS
        }

    def _hierarchical(self, pairs: Sequence[tuple[Key, Key]]) -> Difference:
        draws = numpy.stack([self.draws[key] - self.draws[full] for key, full in pairs])
        difference = fmean(self._difference(*pair) for pair in pairs)
        return compare_hierarchically(difference, draws)


def score_bound(stage: Path, metric: str, score: float) -> float | None:
    """The lower one-sided 95 % bound of a score over the examples that a stage kept.

    score: in the unit printed. The bound is in that unit too, negated if less is better; None if
    the stage kept no predictions that give the score.
    """
    examples = _read(stage, metric, score)
    if isinstance(examples, str):
        return None
    factor = _factor(metric)
    draws = factor * resample([examples])[0] if examples.right is None else None
    return _bound(examples, draws, factor)


def _bound(examples: Examples, draws: numpy.ndarray | None, factor: int) -> float:
    if examples.right is not None:
        return factor * share_bound(examples.right)
    assert draws is not None, "resampled if it is not a share of right examples"
    return resampled_bound(draws)


def _factor(metric: str) -> int:
    kind = metric_named(metric)
    return kind.scale * kind.sign


def _read(stage: Path, metric: str, score: float) -> Examples | str:
    """The examples of a stage under a metric, or the problem with them."""
    try:
        arrays = predictions.read(stage)
    except ValueError:
        return DAMAGED
    if not arrays:
        return NONE_KEPT
    examples, kind = examples_of(arrays, metric), metric_named(metric)
    if examples is None:
        return f"no test of {metric} on its examples is known"
    if abs(examples.value - score / kind.scale) > ROUNDING:
        return OTHER_SCORE
    return examples if kind.sign > 0 else replace(examples, right=None)


def _draws(examples: Mapping[Key, Examples]) -> Iterator[tuple[Key, numpy.ndarray]]:
    """Resampled scores of the trainings with a test that needs them."""
    seeds = Counter(network for network, _ in examples)
    needed: dict[int, list[Key]] = defaultdict(list)
    for key, one in examples.items():
        if one.right is None or seeds[key[0]] >= FEWEST_SEEDS:
            needed[len(one.rows)].append(key)
    for keys in needed.values():
        yield from zip(keys, resample([examples[key] for key in keys]), strict=True)
