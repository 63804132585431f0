"""Early-bird stopping: training ends once its mask has converged."""

import json

import torch

from lth_scale.pruning.early_bird import PATIENCE, EarlyBird


def mask(*pruned: int) -> dict:
    keep = torch.ones(40, dtype=torch.bool)
    keep[list(pruned)] = False
    return {"w": keep}


def test_the_distance_counts_only_newly_pruned_weights():
    bird = EarlyBird(mask(0, 1, 2, 3))
    bird.update(mask(0, 1, 2, 3, 10, 11), 1)
    bird.update(mask(0, 1, 2, 3, 11, 12), 2)  # 10 and 12 differ, of 10, 11, 12
    assert [*bird.distances] == [2 / 3]


def test_it_converges_after_patience_unchanged_masks():
    bird = EarlyBird(mask())
    converged = [bird.update(mask(i, 20, 21), i) for i in range(3)]
    converged += [bird.update(mask(5, 20, 21), 9) for _ in range(PATIENCE + 1)]
    assert converged == [False] * (3 + PATIENCE) + [True]


def test_a_search_stops_rounds_early_but_not_the_last(search):
    out = search(early_bird=True, max_steps=40, learning_rate=1e-6, target_sparsity=0.2)
    steps = [row["steps"] for row in json.loads((out / "results.json").read_text())]
    assert steps == [12, 12, 40]  # a mask every 2 steps; the sixth is the fifth still one
