"""schedules.py: the sparsities of the rounds."""

import math

import pytest

from lth_scale.pruning.registries import SCHEDULES, sparsities

EVERY = [*SCHEDULES]


def test_linear_takes_the_rate_off_the_original_weights_each_round():
    assert sparsities("linear", 0.9, 0.1) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_linear_ends_at_the_target_though_it_is_no_multiple():
    assert sparsities("linear", 0.25, 0.1) == [0.0, 0.1, 0.2, 0.25]


def test_geometric_takes_the_rate_off_the_remaining_weights():
    ladder = sparsities("geometric", 0.5, 0.2)
    assert ladder == pytest.approx([0, 0.2, 0.36, 0.488, 0.5])


def test_one_shot_has_the_dense_round_and_one_more():
    assert sparsities("one_shot", 0.7, 0.1) == [0.0, 0.7]


def test_cubic_prunes_most_at_first_and_ends_at_the_target():
    ladder = sparsities("cubic", 0.8, 0.2)
    assert ladder == pytest.approx([0.0] + [0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("start", [0.0, 0.35])
def test_every_schedule_rises_from_the_start_to_the_target(schedule, start):
    ladder = sparsities(schedule, 0.83, 0.07, start)
    assert ladder[0] == start and ladder[-1] == 0.83
    assert ladder == sorted(set(ladder))


def test_a_start_past_the_target_leaves_nothing_to_prune():
    assert sparsities("linear", 0.2, 0.1, start=0.5) == [0.5]


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("start", [0.0, 0.35])
@pytest.mark.parametrize(
    ("target", "rate"), [(0.9, 0.1), (0.83, 0.07), (0.36, 1e-3), (1 - 2**-53, 0.2), (0.9, 1.0)]
)
def test_the_rounds_can_be_counted_before_they_are_made(schedule, start, target, rate):
    rounds = len(sparsities(schedule, target, rate, start)) - 1
    assert rounds <= math.ceil(SCHEDULES[schedule].count(target, rate, start)) <= 1.1 * rounds + 1


@pytest.mark.parametrize("schedule", ["linear", "geometric", "cubic"])
def test_rates_next_to_nothing_make_rounds_past_counting(schedule):
    assert SCHEDULES[schedule].count(0.9, 1e-9) > 1e8
    assert SCHEDULES[schedule].count(0.9, math.ulp(0)) == math.inf
