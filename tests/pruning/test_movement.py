"""movement.py: movement by hand, and an order that a threshold can cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lth_scale import Ticket
from lth_scale.distributed.ddp import replicated
from lth_scale.pruning import movement


def test_movement_is_minus_rate_times_gradient_times_weight_summed_over_steps():
    weight = torch.nn.Parameter(torch.tensor([[2.0, -1.0, 3.0, 0.0]]))
    pieces = {"w": replicated(weight, torch.optim.SGD([weight]))}
    moved = {"w": torch.zeros(4)}
    for gradient in ([1.0, 1.0, 0.0, 5.0], [-0.5, 1.0, 1.0, 5.0]):
        weight.grad = torch.tensor([gradient])
        movement.accumulate(moved, pieces, 0.1)
    # 2: pulled to zero by 0.1·(−2 + 1); −1: away from it by 0.1·(1 + 1); 3: towards it by 0.3
    assert torch.allclose(moved["w"], torch.tensor([-0.1, 0.2, -0.3, 0.0]))


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=40))
def test_magnitudes_sort_as_the_scores_do(numbers):
    score = torch.tensor(numbers, dtype=torch.float32)
    magnitude = movement.to_magnitude(score)
    assert (magnitude > 0).all() and magnitude.isfinite().all()
    order = score.argsort(stable=True)
    assert (magnitude[order].diff() >= 0).all()
    for before, after in zip(score.tolist(), magnitude.tolist(), strict=True):
        assert movement.from_magnitude(after) == pytest.approx(before, rel=2**-22, abs=1e-44)


def test_what_has_no_order_is_nan_and_nothing_pruned_is_zero():
    assert movement.to_magnitude(torch.tensor([torch.nan, torch.inf, -torch.inf])).isnan().all()
    assert movement.from_magnitude(0.0) == 0.0


def test_a_search_by_movement_prunes_what_moved_to_zero_most(search, monkeypatch):
    seen = []
    accumulate = movement.accumulate

    def watch(totals, pieces, rate):
        accumulate(totals, pieces, rate)
        seen.append({name: score.clone() for name, score in totals.items()})

    monkeypatch.setattr(movement, "accumulate", watch)
    out = search(score="movement", target_sparsity=0.3, prune_rate=0.15)
    for k in (1, 2):
        before, after = (
            Ticket.load(out / f"rounds/0{j}/ticket.safetensors").masks for j in (k - 1, k)
        )
        total = torch.cat([seen[4 * k - 1][name][before[name].view(-1)] for name in before])
        newly = torch.cat([(before[name] & ~after[name])[before[name]] for name in before])
        assert total[newly].max() <= total[~newly].min()
