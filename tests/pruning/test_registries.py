"""Schedules, and a third party's score, schedule, pattern and control through the real code."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from lth_scale import Ticket
from lth_scale.config.arguments import Arguments, with_current_names
from lth_scale.config.errors import BadInput
from lth_scale.config.registry import REGISTRIES
from lth_scale.config.resolution import parse, resolve
from lth_scale.pruning import registries, threshold
from lth_scale.pruning.patterns import Score


@dataclass(frozen=True)
class Halving:
    """A schedule: half of the remaining weights a round, whatever the rate."""

    def count(self, target: float, rate: float, start: float = 0.0) -> float:
        return len(self.sparsities(target, rate, start)) - 1

    def sparsities(self, target: float, rate: float, start: float = 0.0) -> list[float]:
        ladder = [start]
        while ladder[-1] < target:
            ladder.append(min(target, (1 + ladder[-1]) / 2))
        return ladder


@dataclass(frozen=True)
class Half:
    """A pattern: single weights, at half of the requested sparsity, in matrices of even height."""

    tile = (2, 1)
    least_sparsity = 0.5
    default_sparsity = 0.75

    @classmethod
    def parse(cls, text: str) -> "Half | None":
        return cls() if text == "half" else None

    def prune(self, step) -> float:
        return threshold.prune(step.values, step.keep, step.sparsity / 2, step.scope, step.ranks)


def keep_all(subnetwork, seed: int):
    """A control: the dense network."""
    return replace(subnetwork, masks={n: torch.ones_like(m) for n, m in subnetwork.masks.items()})


@pytest.fixture
def third_party(monkeypatch) -> Iterator[None]:
    for kind in ("score", "schedule", "pattern", "control"):
        registry = REGISTRIES[kind]
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    largest_first = Score(
        importance=lambda weights: -weights.abs(),
        to_magnitude=lambda weights: 1 / (1 + weights.abs()),
        from_magnitude=lambda magnitude: 1 / magnitude - 1 if magnitude else 0.0,
    )
    registries.register_score("largest_first", largest_first)
    registries.register_schedule("halving", Halving())
    registries.register_pattern("half", Half.parse)
    registries.register_control("keep_all", "dense control", keep_all, base_weights=True)


def masks_of(path) -> torch.Tensor:
    masks = Ticket.load(path).masks.values()
    return torch.cat([mask.flatten() for mask in masks])


def test_a_search_uses_the_entries_of_a_third_party(third_party, search):
    out = search(
        score="largest_first",
        schedule="halving",
        control="keep_all",
        target_sparsity=0.75,
        rewind_step=0,
        max_steps=1,
    )
    rows = json.loads((out / "results.json").read_text())
    assert [row["sparsity"] for row in rows] == pytest.approx([0, 0.5, 0.75], abs=1e-3)
    controls = json.loads((out / "controls.json").read_text())
    assert [row["pruned"] for row in controls] == [0, 0]
    arguments = json.loads((out / "arguments.json").read_text())
    assert (arguments["score"], arguments["schedule"]) == ("largest_first", "halving")


def test_a_score_decides_which_weights_go(third_party, search):
    from safetensors.torch import load_file

    out = search(score="largest_first", max_steps=0, target_sparsity=0.5, schedule="one_shot")
    ticket = Ticket.load(out / "ticket.safetensors")
    theta = load_file(out / "theta.safetensors")
    weights = torch.cat([theta[f"bert.{name}"].abs().flatten() for name in ticket.masks])
    keep = masks_of(out / "ticket.safetensors")
    assert weights[keep].max() <= weights[~keep].min()


def test_a_score_may_be_summed_over_training(third_party, search):
    def count_steps(totals, pieces, rate):
        for total in totals.values():
            total.add_(torch.arange(len(total)))  # the first weights of each matrix go
            steps.append(rate)

    steps = []
    first = Score(importance=lambda totals: totals, accumulate=count_steps)
    registries.register_score("first_weights", first)
    out = search(score="first_weights", target_sparsity=0.5, schedule="one_shot", scope="layerwise")
    masks = Ticket.load(out / "ticket.safetensors").masks.values()
    assert steps and all(mask.flatten().long().diff().min() >= 0 for mask in masks)


def test_a_pattern_prunes_and_constrains_the_flags(third_party, search, small):
    args = parse(small(pattern="half", target_sparsity=None))
    assert args.target_sparsity == 0.75
    with pytest.raises(BadInput, match=r"--target_sparsity 0\.3: --pattern half starts at 0\.5"):
        parse(small(pattern="half", target_sparsity=0.3))
    with pytest.raises(BadInput, match="does not divide odd"):
        registries.check_pattern("half", {"even": (2, 3), "odd": (3, 2)})
    with pytest.raises(BadInput, match=r"--pattern third: unknown pattern; use one of .*, half"):
        parse(small(pattern="third"))
    out = search(pattern="half", max_steps=1, target_sparsity=0.6, schedule="one_shot")
    assert Ticket.load(out / "ticket.safetensors").sparsity == pytest.approx(0.3, abs=1e-3)


def test_a_name_is_registered_once(third_party):
    with pytest.raises(ValueError, match="'halving' is registered already"):
        registries.register_schedule("halving", Halving())


def test_an_earlier_name_is_refused_with_the_current_one_and_the_reason(small):
    why = r"is called accumulated_taylor now, because it is .*not movement pruning.*; use acc"
    with pytest.raises(BadInput, match=f"--score: movement {why}"):
        parse(small(score="movement"))
    values = {"task": "sst2", "preset": "demo", "score": "movement"}
    for build in (resolve, lambda values: Arguments(**values)):
        with pytest.raises(BadInput, match=f"--score movement: {why}"):
            build(values)
    with pytest.raises(ValueError, match="'movement' is registered already"):
        registries.register_score("movement", registries.SCORES["magnitude"])


def test_saved_flags_get_the_current_names():
    saved = {"score": "movement", "task": "sst2", "ignore": ["movement"], "control": ["odd"]}
    assert with_current_names(saved) == saved | {"score": "accumulated_taylor"}


def test_linear_prunes_the_rate_of_the_original_weights_each_round():
    assert registries.sparsities("linear", 0.9, 0.1) == [
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]


def test_linear_ends_at_a_target_that_is_no_multiple_of_the_rate():
    assert registries.sparsities("linear", 0.25, 0.1) == [0.0, 0.1, 0.2, 0.25]


def test_geometric_prunes_the_rate_of_the_remaining_weights():
    ladder = registries.sparsities("geometric", 0.5, 0.2)
    assert ladder == pytest.approx([0, 0.2, 0.36, 0.488, 0.5])


def test_one_shot_has_the_dense_round_and_one_more():
    assert registries.sparsities("one_shot", 0.7, 0.1) == [0.0, 0.7]


def test_cubic_prunes_most_at_first_and_ends_at_the_target():
    ladder = registries.sparsities("cubic", 0.8, 0.2)
    assert ladder == pytest.approx([0.0] + [0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])


@pytest.mark.parametrize("schedule", ["linear", "geometric", "one_shot", "cubic"])
@pytest.mark.parametrize("start", [0.0, 0.35])
def test_every_schedule_rises_from_the_start_to_the_target(schedule, start):
    ladder = registries.sparsities(schedule, 0.83, 0.07, start)
    assert ladder[0] == start and ladder[-1] == 0.83
    assert ladder == sorted(set(ladder))


def test_a_start_past_the_target_leaves_nothing_to_prune():
    assert registries.sparsities("linear", 0.2, 0.1, start=0.5) == [0.5]


@pytest.mark.parametrize("schedule", ["linear", "geometric", "one_shot", "cubic"])
@pytest.mark.parametrize("start", [0.0, 0.35])
@pytest.mark.parametrize(
    ("target", "rate"), [(0.9, 0.1), (0.83, 0.07), (0.36, 1e-3), (1 - 2**-53, 0.2), (0.9, 1.0)]
)
def test_the_count_of_rounds_is_close_to_their_number(schedule, start, target, rate):
    rounds = len(registries.sparsities(schedule, target, rate, start)) - 1
    assert (
        rounds
        <= math.ceil(registries.SCHEDULES[schedule].count(target, rate, start))
        <= 1.1 * rounds + 1
    )


@pytest.mark.parametrize("schedule", ["linear", "geometric", "cubic"])
def test_tiny_rates_give_huge_counts_of_rounds(schedule):
    assert registries.SCHEDULES[schedule].count(0.9, 1e-9) > 1e8
    assert registries.SCHEDULES[schedule].count(0.9, math.ulp(0)) == math.inf
